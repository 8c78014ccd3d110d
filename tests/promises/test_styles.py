"""Ways of training: precisions, memory formats, and who steps which optimiser when.

In each, everything that training leaves behind is the same with both monitors as without, the snapshots have the steps
that were asked for, and they hold what the forward pass gives in that precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from support.devices import ACCELERATORS, on
from support.inertness import Trained, differences, trace
from support.training import probe
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

IMAGE = (3, 16, 16)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(4, 5, 3)
    )


def monitors(**more: Any) -> list[L.Callback]:
    return [FilterMonitor(**more), FeatureMapMonitor(probe(2), **more)]


def stored(folder: Path) -> RunStore:
    return RunStore.open(str(folder / "cnnlog_logs" / "version_0" / "cnnlog"))


class Reference(L.Callback):
    """What a forward pass of its own gives at the end of a training, without any of the package's ways."""

    def __init__(self, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
        self.dtype, self.autocast = dtype, autocast
        self.maps: dict[str, torch.Tensor] = {}
        self.filters: dict[str, torch.Tensor] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # later it is on the CPU again
        module: Any = pl_module
        module.eval()
        tensor = probe(2).tensor.to(module.device, self.dtype)
        context: AbstractContextManager[Any] = nullcontext()
        if self.autocast is not None:
            context = torch.autocast(module.device.type, self.autocast)
        with torch.no_grad(), context:
            first = module.net[0](tensor)
            second = module.net[4](torch.relu(module.net[1](first)))
        self.maps = {"net.0": first, "net.4": second}
        self.filters = {name: module.get_submodule(name).weight.detach() for name in self.maps}


def assert_stored_is(reference: Reference, run: RunStore) -> None:
    record = run.read_record(max(run.steps))
    for seen, expected in ((record.filters, reference.filters), (record.feature_maps, reference.maps)):
        for name, tensor in expected.items():
            if seen is record.filters and name != "net.0":
                continue  # drawn as slices; all of it is in weights-latest
            np.testing.assert_array_equal(seen[name], tensor.float().cpu().contiguous().numpy())
    latest, _ = run.read_weights("latest")
    for name, tensor in reference.filters.items():
        np.testing.assert_array_equal(latest[name], tensor.float().cpu().contiguous().numpy())


# --- precision

# Lightning's name -> the parameters' type, and autocast's
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-true": (torch.float16, None),
    "bf16-true": (torch.bfloat16, None),
    "64-true": (torch.float64, None),
}


def in_precision(name: str, accelerator: str) -> dict[str, Any]:
    if (name, accelerator) == ("16-mixed", "cpu"):  # Lightning takes bf16-mixed instead if only the name is given
        return {"plugins": [MixedPrecision("16-mixed", "cpu")]}
    return {"precision": name}


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains_as_if_unwatched_and_shows_its_own_forward(
    precision: str, accelerator: str, tmp_path: Path
) -> None:
    reference = Reference(*PRECISIONS[precision])
    plain = trace(net, IMAGE, lambda: [reference], tmp_path, **on(accelerator), **in_precision(precision, accelerator))
    watched = trace(
        net,
        IMAGE,
        lambda: [*monitors(), reference],
        tmp_path,
        **on(accelerator),
        **in_precision(precision, accelerator),
    )
    assert differences(plain, watched) == []
    assert str(PRECISIONS[precision][0]) in plain["state net.0.weight"]
    assert stored(tmp_path).steps == [0, 1, 2]
    assert_stored_is(reference, stored(tmp_path))


def test_where_lightning_changes_the_precision_the_probe_follows(tmp_path: Path) -> None:
    reference = Reference(torch.float32, torch.bfloat16)
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU. Using .*bf16-mixed"):
        trace(net, IMAGE, lambda: [*monitors(), reference], tmp_path, precision="16-mixed")
    assert_stored_is(reference, stored(tmp_path))


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_channels_last_trains_as_if_unwatched_and_is_stored_in_rows(accelerator: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return net().to(memory_format=torch.channels_last)

    reference = Reference(torch.float32, None)
    plain = trace(build, IMAGE, lambda: [reference], tmp_path, **on(accelerator))
    watched = trace(build, IMAGE, lambda: [*monitors(), reference], tmp_path, **on(accelerator))
    assert differences(plain, watched) == []
    assert "(36, 1, 12, 4)" in plain["state net.4.weight"]  # the strides of channels last
    assert reference.maps["net.4"].is_contiguous(memory_format=torch.channels_last)
    assert_stored_is(reference, stored(tmp_path))


# --- who steps which optimiser, and when


class Adam(Trained):
    def __init__(self) -> None:
        super().__init__(net())

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimiser], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5), "interval": "step"}]


class Quasi(Trained):
    """LBFGS runs its closure, with a forward pass each, many times a step."""

    def __init__(self) -> None:
        super().__init__(net())

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=1e-2, max_iter=3)


class Manual(Trained):
    """Two optimisers, stepped by the module: one at each batch, the other at every second."""

    def __init__(self) -> None:
        super().__init__(net())
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:  # type: ignore[override]
        both = self.optimizers()
        assert isinstance(both, list)
        often, seldom = both
        self.manual_backward(super().training_step(batch, index))
        often.step()
        often.zero_grad()
        if index % 2:
            seldom.step()
            seldom.zero_grad()

    def configure_optimizers(self) -> Any:
        first, last = self.get_submodule("net.0"), self.get_submodule("net.4")
        return torch.optim.SGD(first.parameters(), lr=0.1), torch.optim.Adam(last.parameters())


class Gan(Trained):
    """A generator and a discriminator by turns, and a `forward` that takes noise: no image can go through it."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Unflatten(1, (6, 1, 1)), nn.ConvTranspose2d(6, 4, 8), nn.BatchNorm2d(4), nn.ReLU(True),
            nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(0.3),
            nn.Conv2d(4, 1, 7),
            nn.Flatten(),
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: list[torch.Tensor], _: int) -> None:  # type: ignore[override]
        judge = nn.functional.binary_cross_entropy_with_logits
        both = self.optimizers()
        assert isinstance(both, list)
        generating, judging = both
        real = batch[0]
        noise = torch.randn(len(real), 6, device=real.device, dtype=real.dtype)
        genuine, faked = real.new_ones(len(real), 1), real.new_zeros(len(real), 1)

        self.toggle_optimizer(generating)
        loss = judge(self.discriminator(self(noise)), genuine)
        self.log("generator", loss)
        self.manual_backward(loss)
        generating.step()
        generating.zero_grad()
        self.untoggle_optimizer(generating)

        self.toggle_optimizer(judging)
        loss = judge(self.discriminator(real), genuine) + judge(self.discriminator(self(noise).detach()), faked)
        self.log("discriminator", loss, on_epoch=True)
        self.manual_backward(loss)
        judging.step()
        judging.zero_grad()
        self.untoggle_optimizer(judging)
        self.losses.append(float(loss.item()).hex())

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999)) for part in parts]


NO_CLIPPING: dict[str, Any] = {
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
}  # which Lightning leaves to such modules


@dataclass(frozen=True)
class Style:
    """A way of training over 2 epochs of 5 batches, and the steps that it should give, by schedule; the last, too."""

    build: Callable[[], nn.Module]
    every_step: Sequence[int]
    every_fourth: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)
    through: str | None = None


STYLES = {
    "automatic": Style(Adam, range(11), [0, 4, 8, 10]),
    # the last batch of an epoch steps, too
    "accumulation": Style(Adam, range(7), [0, 4, 6], {"accumulate_grad_batches": 2}),
    "lbfgs": Style(Quasi, range(11), [0, 4, 8, 10]),
    # each optimiser's step counts: 1, 2, 1, 2 and 1 in an epoch
    "manual": Style(Manual, [0, 1, 3, 4, 6, 7, 8, 10, 11, 13, 14], [0, 4, 8, 13, 14], NO_CLIPPING),
    "gan": Style(Gan, range(0, 21, 2), range(0, 21, 4), NO_CLIPPING, "discriminator"),
}


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("name", STYLES)
def test_every_style_of_optimisation_trains_as_if_unwatched_at_the_documented_steps(
    name: str, accelerator: str, tmp_path: Path
) -> None:
    style = STYLES[name]
    more = {"images": 20, **on(accelerator), **style.options}
    plain = trace(style.build, IMAGE, list, tmp_path, **more)
    total = style.every_step[-1]
    for every, steps in ((None, [0, 1, 2]), (1, style.every_step), (4, style.every_fourth)):
        folder = tmp_path / str(every)
        watching = partial(monitors, through=style.through, every_n_train_steps=every)
        assert differences(plain, trace(style.build, IMAGE, watching, folder, **more)) == []
        run = stored(folder)
        assert run.steps == list(steps)
        global_steps = [run.read_record(step).global_step for step in run.steps]
        assert global_steps == ([0, total // 2, total] if every is None else run.steps)


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_gan_is_watched_through_the_part_that_takes_images(accelerator: str, tmp_path: Path) -> None:
    options = {**NO_CLIPPING, **on(accelerator)}
    with pytest.raises(ValueError, match=r"The probe \[2, 3, 16, 16\] cannot go through Gan"):
        trace(Gan, IMAGE, monitors, tmp_path, **options)
    watching = [FilterMonitor("*", through="discriminator"), FeatureMapMonitor(probe(2), through="discriminator")]
    trace(Gan, IMAGE, lambda: watching, tmp_path, **options)
    record = stored(tmp_path).read_record(2)
    assert sorted(record.feature_maps) == ["discriminator.0", "discriminator.3"]
    assert sorted(record.filters) == ["discriminator.0", "discriminator.3", "generator.1", "generator.4"]
    assert record.feature_maps["discriminator.0"].shape == (2, 4, 7, 7)
    for name, change in record.numbers["weight_change"].items():
        assert change[0] > 0, f"both halves train, {name} too"


def test_a_gans_filters_need_neither_a_forward_nor_a_probe(tmp_path: Path) -> None:
    trace(Gan, IMAGE, lambda: [FilterMonitor()], tmp_path, **NO_CLIPPING)
    assert len(stored(tmp_path).manifest.layers) == 4
