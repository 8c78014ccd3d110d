"""Without a probe of the user's, the network is watched on what it is fed, and a run that goes on keeps its probe."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from support.training import TinyCNN, ours, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.monitors.chosen_probe import apart
from cnnlog.runs.store import RunStore

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))


class Items(Dataset[Any]):
    """Samples made by a function of the image and its label."""

    def __init__(self, make: Callable[[torch.Tensor, int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        return self.make(IMAGES[index], index % 3)


class Any2(TinyCNN):
    """Takes batches of all kinds."""

    def image(self, batch: Any) -> torch.Tensor:
        return batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self(self.image(batch)).square().mean()

    def validation_step(self, batch: Any, _: int, dataloader_idx: int = 0) -> None:
        self(self.image(batch))


class Dividing(Any2):
    """The network's first step is to scale."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.uint8
        return super().forward((x.float() / 255 - 0.5) / 0.25)


class OnDevice(Any2):
    """Scales, and augments in training, after a batch has been moved; counts."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[str] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.moved.append("batch")
        x = batch[0].float() / 255
        return (x + torch.rand(()) if self.trainer.training else x), batch[1]


class InTheStep(Any2):
    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self(batch[0].float() / 255).square().mean()

    def validation_step(self, batch: Any, _: int, dataloader_idx: int = 0) -> None:
        self(batch[0].float() / 255)


def as_bytes(x: torch.Tensor, y: int) -> Any:
    return (x * 255).to(torch.uint8), y


def run(
    folder: Path, module: L.LightningModule, train: Any, val: Any = None, *, monitors: Any = None, **more: Any
) -> tuple[RunStore, list[str]]:
    logger = CSVLogger(folder, "run", "v0")
    fit = trainer(folder, monitors or [FeatureMapMonitor(layers="net.0")], max_epochs=1, logger=logger, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(module, train, val)
    return RunStore.open(str(folder / "run" / "v0" / "cnnlog")), [str(w.message) for w in caught if ours(w)]


def fed(folder: Path, module: L.LightningModule, train: Any, val: Any = None, **more: Any) -> np.ndarray:
    store, said = run(folder, module, train, val, **more)
    assert not said
    return store.read_probe()


def collate(samples: Any) -> Any:
    """As an image processor: scales, resizes."""
    x = nn.functional.interpolate(torch.stack([x for x, _ in samples]), 12) * 2 - 1
    return x, torch.tensor([y for _, y in samples])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((image, 0) for image in IMAGES)


PLAIN = Items(lambda x, y: (x, y))


@pytest.mark.parametrize(
    ("module", "train", "val", "expected"),
    [
        (Any2, DataLoader(PLAIN, 4), None, IMAGES[:1]),
        (Any2, DataLoader(Items(lambda x, y: (x - 1, y)), 4), DataLoader(PLAIN, 4), IMAGES[:1]),
        (Any2, DataLoader(PLAIN, 4, collate_fn=collate), None, collate([(IMAGES[0], 0)])[0]),
        (Any2, DataLoader(PLAIN, 4), [DataLoader(PLAIN, 4), DataLoader(PLAIN, 2)], IMAGES[:1]),
        (Any2, DataLoader(PLAIN, 4), CombinedLoader({"a": DataLoader(PLAIN, 4)}, "sequential"), IMAGES[:1]),
        (Any2, DataLoader(Items(lambda x, y: {"mask": x[:1], "image": x}), 4), None, IMAGES[:1]),
        (Any2, DataLoader(PLAIN, 4), DataLoader(Endless(), 4), IMAGES[:1]),
        (Dividing, DataLoader(Items(as_bytes), 4), None, (IMAGES[:1] * 255).to(torch.uint8)),
        (OnDevice, DataLoader(Items(as_bytes), 4), DataLoader(Items(as_bytes), 4),
         (IMAGES[:1] * 255).to(torch.uint8).float() / 255),
    ],
    ids=["training", "validation first", "collate", "several", "combined", "mask first", "stream", "uint8", "hook"],
)  # fmt: skip
def test_the_probe_is_what_the_network_is_fed(
    module: type[L.LightningModule], train: Any, val: Any, expected: torch.Tensor, tmp_path: Path
) -> None:
    taken = fed(tmp_path, module(), train, val)
    assert taken.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(taken, expected.numpy())


def test_hooks_for_batches_leave_no_trace(tmp_path: Path) -> None:
    watched, alone = OnDevice(), OnDevice()
    loader = DataLoader(Items(as_bytes), 4)
    run(tmp_path, watched, loader)
    plain = trainer(tmp_path, [], max_epochs=1, logger=False)
    plain.fit(alone, loader)
    assert watched.moved == alone.moved


def test_uint8_that_the_training_step_divides_is_divided_and_said(tmp_path: Path) -> None:
    store, said = run(tmp_path, InTheStep(), DataLoader(Items(as_bytes), 4))
    np.testing.assert_array_equal(store.read_probe(), (IMAGES[:1] * 255).to(torch.uint8).numpy() / np.float32(255))
    assert "the probe is divided by 255; pass a Probe" in said[0]
    given = Probe.from_tensor((IMAGES[:1] * 255).to(torch.uint8))
    with pytest.raises(ValueError, match=r"The probe is uint8, and goes to the network as it is: .*float\(\) / 255"):
        run(tmp_path / "given", InTheStep(), DataLoader(Items(as_bytes), 4), monitors=[FeatureMapMonitor(given)])


@pytest.mark.parametrize("given", [False, True])
def test_an_error_that_is_not_of_the_type_does_not_speak_of_it(given: bool, tmp_path: Path) -> None:
    class Failing(Dividing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("the hook wants a batch of 7")

    monitors = [FeatureMapMonitor(Probe.from_tensor(as_bytes(IMAGES[:1], 0)[0]) if given else None, layers="net.0")]
    with pytest.raises(ValueError, match="a batch of 7") as caught:
        run(tmp_path, Failing(), DataLoader(Items(as_bytes), 4), monitors=monitors)
    assert "The probe is uint8" not in str(caught.value)


class Prefetching:
    """A loader of one's own, which a thread fills."""

    def __init__(self) -> None:
        self.batches: queue.Queue[Any] = queue.Queue()
        self.firsts: list[float] = []
        threading.Thread(target=self.fill).start()

    def fill(self) -> None:
        for first in range(0, 8, 2):
            self.batches.put((IMAGES[first : first + 2], first))

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        for _ in range(4):
            batch, first = self.batches.get(timeout=10)
            self.firsts.append(first)
            yield batch, torch.zeros(2)


class Unbound:
    """Stands for an object that there is not yet, as those of web frameworks do."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("working outside of a context")


def test_a_loader_that_a_thread_fills_is_not_read(tmp_path: Path) -> None:
    loader = Prefetching()
    store, said = run(tmp_path, Any2(), loader, monitors=[FilterMonitor()])
    assert store.manifest.probe == {}
    assert loader.firsts == [0, 2, 4, 6]
    assert "the first sample of the Prefetching would use it up, because of the Queue in it" in said[0]
    with pytest.raises(ValueError, match=r"the first sample of the Prefetching .*pass a Probe"):
        run(tmp_path / "maps", Any2(), Prefetching())


def test_whatever_fails_about_a_probe_does_not_end_a_run_of_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Items(lambda x, y: (x, y))
    data.held = Unbound()  # type: ignore[attr-defined]
    store, said = run(tmp_path / "a", Any2(), DataLoader(data, 4), monitors=[FilterMonitor()])
    assert not said
    assert store.read_probe().shape == (1, 3, 16, 16)

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("working outside of a context")

    monkeypatch.setattr("cnnlog.monitors.chosen_probe.default_probe", fails)
    store, said = run(tmp_path / "b", Any2(), DataLoader(data, 4), monitors=[FilterMonitor()])
    assert store.steps == [0, 1]
    assert "filters are shown as they are stored: working outside of a context" in said[0]
    with pytest.raises(RuntimeError, match="outside of a context"):
        run(tmp_path / "c", Any2(), DataLoader(data, 4))


class Waves(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = nn.Conv1d(2, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).mean(2)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("given", [False, True])
def test_signals_are_fed_as_they_are(given: bool, tmp_path: Path) -> None:
    waves = torch.rand(6, 2, 50)
    monitor = FilterMonitor("other", probe=Probe.from_tensor(waves[:1]) if given else None)
    store, _ = run(tmp_path, Waves(), DataLoader(waves, 3), monitors=[monitor])  # type: ignore[arg-type]
    np.testing.assert_array_equal(store.read_probe(), waves[:1].numpy())


class Gray(Any2):
    """Adds the axis of the channel in its step, and its forward takes images."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0] = nn.Conv2d(1, 6, 5, padding=2)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self(batch[0][:, None]).square().mean()


def test_gray_images_without_an_axis_of_channels(tmp_path: Path) -> None:
    taken = fed(tmp_path, Gray(), DataLoader(Items(lambda x, y: (x[0], y)), 4))
    np.testing.assert_array_equal(taken, IMAGES[:1, :1].numpy())


def test_a_collate_function_that_fails_for_one_sample_is_said(tmp_path: Path) -> None:
    def pairs(samples: Any) -> Any:
        if len(samples) < 2:
            raise ValueError("mixing needs two samples")
        return torch.stack([x for x, _ in samples]), torch.zeros(len(samples))

    store, said = run(tmp_path, Any2(), DataLoader(PLAIN, 4, collate_fn=pairs))
    np.testing.assert_array_equal(store.read_probe(), IMAGES[:1].numpy())
    assert len(said) == 1
    assert "mixing needs two samples" in said[0]
    assert "pass a Probe" in said[0]


def test_a_batch_without_an_image_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    class Words(Any2):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.zeros(len(x), 3, 16, 16))

    loader = DataLoader(Items(lambda x, y: (x[0, 0], y)), 4)
    with pytest.raises(
        ValueError, match=r"No image \[C, H, W\] was found in .*training loader.*\[1, 16\].*pass a Probe"
    ):
        run(tmp_path, Words(), loader)
    store, said = run(tmp_path / "filters", Words(), loader, monitors=[FilterMonitor()])
    assert not said
    assert store.manifest.probe == {}


# --- a run that goes on


class Augmenting(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index] + AUGMENTS["by"] * torch.rand(()), index % 3


AUGMENTS = {"by": 1.0}


@pytest.mark.parametrize("monitor", [FeatureMapMonitor, FilterMonitor])
@pytest.mark.parametrize("how", ["checkpoint", "second fit"])
def test_a_run_that_goes_on_keeps_its_probe(
    monitor: Callable[..., L.Callback], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(run: L.Trainer, ckpt: str | None) -> None:
        run.fit(Any2(), DataLoader(Augmenting(), 4), ckpt_path=ckpt)

    def made(epochs: int, probe: Probe | None = None) -> L.Trainer:
        logger = TensorBoardLogger(tmp_path, "run", "v0")
        monitors = [monitor(probe=probe)]
        return trainer(tmp_path, monitors, max_epochs=epochs, logger=logger, enable_checkpointing=True)

    first = made(1)
    fit(first, None)
    store = RunStore.open(str(tmp_path / "run" / "v0" / "cnnlog"))
    before, facts = store.read_probe(), store.manifest.probe
    monkeypatch.setitem(AUGMENTS, "by", 0.5)  # the data are other ones now
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
    if how == "checkpoint":
        fit(made(2), first.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    else:
        first.fit_loop.max_epochs = 2
        fit(first, None)
    assert store.steps == [0, 1, 2]
    store = RunStore.open(store.folder)
    np.testing.assert_array_equal(store.read_probe(), before)
    assert store.manifest.probe == facts
    last = made(3, probe=Probe.from_tensor(IMAGES[1]))
    with pytest.raises(ValueError, match="had other probe"):
        fit(last, first.checkpoint_callback.best_model_path)  # type: ignore[union-attr]


# --- the first training batch


@pytest.mark.parametrize(
    ("ours_is", "theirs", "said"),
    [
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16), None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16) * 7, None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 31, 24), None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16, dtype=torch.float64), None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16).bfloat16(), None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16) * 255, "peaks more than 8 times apart"),
        (torch.rand(1, 3, 16, 16) * 255, torch.rand(4, 3, 16, 16), "peaks more than 8 times apart"),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 33), "sides more than twice apart"),
        (torch.rand(1, 3, 64, 16), torch.rand(4, 3, 16, 16), "sides more than twice apart"),
        (torch.rand(1, 1, 16, 16), torch.rand(4, 3, 16, 16), "other channels"),
        (torch.rand(1, 3, 16, 16), torch.ones(4, 3, 16, 16, dtype=torch.uint8), "another kind of numbers"),
        (torch.rand(1, 10), torch.rand(4, 3, 16, 16), None),
        (torch.rand(1, 3, 16, 16), torch.zeros(4, dtype=torch.int64), None),
        (torch.rand(1, 3, 16, 16), [torch.rand(3, 16, 16)], None),
        (torch.rand(1, 1, 16, 16), torch.rand(4, 16, 16), None),
        (torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16).to(torch.float8_e4m3fn), None),
        (torch.full((1, 3, 4, 4), 127, dtype=torch.int8), torch.full((4, 3, 4, 4), -128, dtype=torch.int8), None),
        (
            torch.full((1, 3, 4, 4), 9, dtype=torch.int16),
            torch.full((4, 3, 4, 4), 900, dtype=torch.uint16),
            "peaks more than 8 times apart",
        ),
        (torch.rand(1, 1, 16, 16), torch.rand(4, 16, 40), "sides more than twice apart"),
    ],
)
def test_what_differs_from_a_batch(ours_is: torch.Tensor, theirs: Any, said: str | None) -> None:
    text = apart(Probe.from_tensor(ours_is), (theirs, torch.zeros(4)))
    if said is None:
        assert text is None
    else:
        assert text is not None
        assert said in text
        assert str(list(ours_is.shape)) in text
        assert str(list(theirs.shape)) in text or theirs.dim() == 3


def test_the_first_training_batch_is_compared_once(tmp_path: Path) -> None:
    loader = DataLoader(Items(lambda x, y: (x * 255, y)), 4)
    _, said = run(
        tmp_path, Any2(), loader, monitors=[FilterMonitor(), FeatureMapMonitor(Probe.from_tensor(IMAGES[:1]))]
    )
    (text,) = [text for text in said if "trained on" in text]  # with such values a layer may die, too
    assert "peaks more than 8 times apart" in text
    assert "float32 [1, 3, 16, 16] from" in text
    assert "float32 [4, 3, 16, 16] from" in text
