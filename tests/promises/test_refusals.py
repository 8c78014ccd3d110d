"""Wrong input is refused before training starts, in one sentence: what was expected, what arrived, what to do."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from support.training import TinyCNN, fit, loader, probe, trainer
from torch import nn
from torch.utils.data import DataLoader

from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.runs.store import RunStore

MONITORS = (FilterMonitor, FeatureMapMonitor)


def refused(
    folder: Path, callbacks: Sequence[L.Callback], *said: str, module: L.LightningModule | None = None, **more: Any
) -> str:
    """Fit, and see it refused before the first optimiser step, with nothing left behind; the error's text."""
    module = TinyCNN() if module is None else module
    run = trainer(folder, callbacks)
    with pytest.raises(ValueError, match=r".") as caught:
        fit(run, module, **more)
    text = str(caught.value)
    for part in said:
        assert part in text
    assert run.global_step == 0
    assert not list(folder.rglob("step-*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cnnlog")]
    assert "\n" not in text
    return text


# --- layers


@pytest.mark.parametrize("monitor", [FilterMonitor, lambda **more: FeatureMapMonitor(probe(), **more)])
def test_an_unknown_layer_is_answered_with_close_names(monitor: Callable[..., L.Callback], tmp_path: Path) -> None:
    refused(tmp_path, [monitor(layers="nett.0")], "no layer 'nett.0'", "did you mean", "'net.0'")


def test_one_unknown_layer_among_others_is_enough(tmp_path: Path) -> None:
    refused(tmp_path, [FilterMonitor(["net.0", "net.33"])], "no layer 'net.33'", "'net.3'")


def test_a_glob_that_matches_nothing(tmp_path: Path) -> None:
    refused(tmp_path, [FilterMonitor("features.*")], "no layer matching 'features.*'", "layers with filters: 'net.0'")


def test_a_type_that_matches_nothing(tmp_path: Path) -> None:
    refused(tmp_path, [FilterMonitor([nn.Conv3d])], "no layer of type Conv3d", "layers with filters: 'net.0'")


def test_a_layer_without_maps(tmp_path: Path) -> None:
    said = "Layer 'head' (Linear) has no feature maps", "expected an output [N, C, H, W]", "[1, 3]", "'net.0'"
    refused(tmp_path, [FeatureMapMonitor(probe(), "head")], *said)


def test_a_layer_without_filters(tmp_path: Path) -> None:
    said = "Layer 'head' (Linear) has no filters", "expected a 4-D weight", "[3, 10]", "'net.0'"
    refused(tmp_path, [FilterMonitor("head")], *said)


class NoConvolution(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x))


@pytest.mark.parametrize("monitor", [FilterMonitor, lambda: FeatureMapMonitor(probe())])
def test_a_model_without_convolutions(monitor: Callable[[], L.Callback], tmp_path: Path) -> None:
    said = 'layers="auto" watches 2-D and 3-D convolutions', "has none", "name the layers to watch"
    refused(tmp_path, [monitor()], *said, module=NoConvolution())


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("layers", [5, None, [3], [None], object()])
def test_layers_of_another_kind(monitor: Callable[..., L.Callback], layers: Any) -> None:
    with pytest.raises(TypeError, match=r'expected layers as "auto", names, globs or module types, got'):
        monitor(layers=layers)


@pytest.mark.parametrize("view", ["rgb", "gray"])
def test_a_view_that_does_not_fit_the_layer(view: Any, tmp_path: Path) -> None:
    said = "Layer 'net.3'", f'view "{view}" needs filters with', "these have 6", '"slices"', '"mean"'
    refused(tmp_path, [FilterMonitor("net.3", view=view)], *said)


# --- probes


def image_file(folder: Path, name: str) -> Path:
    path = folder / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path, "PNG")
    return path


def test_a_missing_probe_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no probe image at .*shark\.jpg.*give the path of an image file"):
        FeatureMapMonitor(str(tmp_path / "shark.jpg"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", r"shark\.png' is empty \(0 bytes\): give a whole image file"),
        (lambda data: data[: len(data) // 2], r"shark\.png' is damaged.*give a whole one"),
        (lambda data: b"not an image at all", r"shark\.png' is not an image: give a PNG or JPEG file"),
        (lambda data: b"PK\x03\x04" + data, r"shark\.png' is not an image"),
    ],
)
def test_a_probe_file_that_is_no_whole_image(damage: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    path = image_file(tmp_path, "shark.png")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        FeatureMapMonitor(str(path))


def test_a_folder_for_a_probe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A probe image is a file, but .* is a folder: name one image in it"):
        FeatureMapMonitor(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("monitor", [FeatureMapMonitor, lambda probe: FilterMonitor(probe=probe)])
@pytest.mark.parametrize("wrong", [torch.rand(1, 3, 16, 16), np.zeros((3, 4, 4)), 5, [torch.rand(3, 4, 4)], []])
def test_a_probe_of_another_kind(monitor: Callable[[Any], L.Callback], wrong: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"expected probe as a Probe or the paths of images, got"
    ) as caught:
        monitor(wrong)
    assert "Probe.from_tensor" in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_probe_with_values_that_are_not_numbers(bad: float) -> None:
    tensor = torch.zeros(1, 3, 4, 4)
    tensor[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"A probe is finite, but 1 of this one's 48 values are NaN or infinite"):
        Probe.from_tensor(tensor)


@pytest.mark.parametrize("monitor", [FeatureMapMonitor, lambda probe: FilterMonitor(probe=probe)])
def test_a_probe_with_other_channels(monitor: Callable[[Probe], L.Callback], tmp_path: Path) -> None:
    wrong = Probe.from_tensor(torch.rand(1, 1, 16, 16))
    said = "The probe [1, 1, 16, 16] cannot go through TinyCNN", "expected input", "3 channels", "what ran: nothing"
    text = refused(tmp_path, [monitor(wrong)], *said)
    assert "Give a probe of the size and channels that the model is trained on" in text


def test_a_probe_too_small_names_the_layers_that_ran(tmp_path: Path) -> None:
    wrong = Probe.from_tensor(torch.rand(1, 3, 4, 4))
    said = "The probe [1, 3, 4, 4] cannot go through TinyCNN", "what ran: net.0 [1, 6, 4, 4]", "net.2 [1, 6, 2, 2]"
    refused(tmp_path, [FeatureMapMonitor(wrong)], *said)


def test_data_without_an_image_for_the_probe(tmp_path: Path) -> None:
    data: DataLoader[Any] = DataLoader([(torch.zeros(3), 0)] * 4)  # type: ignore[arg-type]  # a list will do
    run = trainer(tmp_path, [FeatureMapMonitor()])
    with pytest.raises(ValueError, match=r"No image \[C, H, W\] was found in .*pass a Probe"):
        run.fit(TinyCNN(), data)
    assert run.global_step == 0


IMAGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda image: image,
    "gray": lambda image: image.convert("L"),
    "palette": lambda image: image.quantize(256),
    "RGBA": lambda image: image.convert("RGBA"),
    "CMYK": lambda image: image.convert("CMYK"),
    "16 bit": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257),
    "EXIF": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_kind_are_converted_rightly(kind: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.full((16, 16), 64, np.uint8)], -1)
    original = Image.fromarray(pixels)
    exif = Image.Exif()
    if kind == "EXIF":
        exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    path = tmp_path / ("probe.tif" if kind == "CMYK" else "probe.png")
    IMAGES[kind](original).save(path, exif=exif)
    fit(trainer(tmp_path, [FeatureMapMonitor(str(path))], max_epochs=1), TinyCNN())
    seen = RunStore.open(str(tmp_path / "run" / "v0" / "cnnlog")).read_probe()
    shown = original.convert("L").convert("RGB") if kind in ("gray", "16 bit") else original
    expected = np.asarray(shown, np.float32).transpose(2, 0, 1)[None] / 255
    tolerance = 0.06 if kind == "palette" else 1.01 / 255
    np.testing.assert_allclose(seen, expected, atol=tolerance)


# --- schedules and options


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("schedule", ["every_n_epochs", "every_n_train_steps"])
@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_a_schedule_that_is_no_whole_number(monitor: Callable[..., L.Callback], schedule: str, number: Any) -> None:
    with pytest.raises(ValueError, match=rf"expected {schedule} to be a whole number from 1 on, got {number!r}"):
        monitor(**{schedule: number})


@pytest.mark.parametrize("monitor", MONITORS)
def test_both_schedules(monitor: Callable[..., L.Callback]) -> None:
    with pytest.raises(ValueError, match=r"every_n_epochs or every_n_train_steps, got both \(2, 3\); leave one out"):
        monitor(every_n_epochs=2, every_n_train_steps=3)


@pytest.mark.parametrize(
    ("monitor", "option", "value", "said"),
    [
        (FilterMonitor, "view", "colour", "view as one of auto, rgb, gray, slices, mean, got 'colour'"),
        (FilterMonitor, "value_range", "own", "value_range as one of channel, layer, step, got 'own'"),
        (FeatureMapMonitor, "value_range", None, "value_range as one of channel, layer, step, got None"),
        (FeatureMapMonitor, "on_error", "ignore", "on_error as one of warn, raise, got 'ignore'"),
        (FilterMonitor, "max_filters", 0, "max_filters to be a whole number from 1 on, got 0"),
        (FeatureMapMonitor, "max_maps", -3, "max_maps to be a whole number from 1 on, got -3"),
        (FilterMonitor, "max_slices", 2.5, "max_slices to be a whole number from 1 on, got 2.5"),
        (FilterMonitor, "width", 3, "width to be a whole number from 16 on, or None, got 3"),
        (FilterMonitor, "cmap", "virdis", "'virdis'"),
        (FeatureMapMonitor, "cmap", "virdis", "did you mean viridis"),
    ],
)
def test_an_option_that_is_none(monitor: Callable[..., L.Callback], option: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        monitor(**{option: value})


def test_two_monitors_of_one_kind(tmp_path: Path) -> None:
    class Own(FilterMonitor):
        pass

    refused(tmp_path, [FilterMonitor(), Own()], "takes one FilterMonitor, got 2", "name all layers")
    refused(tmp_path, [FilterMonitor("net.0"), FilterMonitor("net.3")], "takes one FilterMonitor, got 2")
    refused(tmp_path, [FeatureMapMonitor(probe()), FeatureMapMonitor(probe())], "takes one FeatureMapMonitor, got 2")


@pytest.mark.parametrize("kind", [FilterMonitor, FeatureMapMonitor])
def test_a_class_in_the_place_of_a_monitor(kind: Any, tmp_path: Path) -> None:
    for callbacks in ([kind], [kind, FilterMonitor()], [FilterMonitor(), kind]):
        try:
            run = trainer(tmp_path, callbacks)
        except ValueError:
            pytest.skip("this Lightning refuses a class itself, before anybody else is asked")
        with pytest.raises(TypeError, match=rf"got the class {kind.__name__}: write {kind.__name__}\(\)"):
            fit(run, TinyCNN())
        assert run.global_step == 0


def test_two_probes(tmp_path: Path) -> None:
    callbacks = [FilterMonitor(probe=Probe.chart(32)), FeatureMapMonitor(probe())]
    refused(tmp_path, callbacks, "share their probe, but got two different ones", "give it to one")


def test_the_monitors_share_the_way_through_the_model(tmp_path: Path) -> None:
    callbacks = [FilterMonitor(through="net"), FeatureMapMonitor(probe(), through="head")]
    refused(tmp_path, callbacks, "share their probe's way", "through='head' and through='net'", "give it to one")


def test_one_probe_twice_is_one_probe(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FilterMonitor(probe=probe()), FeatureMapMonitor(probe())], max_epochs=1), TinyCNN())
    assert RunStore.open(str(tmp_path / "run" / "v0" / "cnnlog")).steps == [0, 1]


# --- models


class Lazy(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.side = nn.LazyConv2d(4, 3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Scripted(TinyCNN):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net


@pytest.mark.parametrize("monitor", [FilterMonitor, lambda layers: FeatureMapMonitor(probe(), layers)])
def test_lazy_layers_are_refused_where_they_are_asked_for(monitor: Callable[[str], L.Callback], tmp_path: Path) -> None:
    said = "Layer 'side' (LazyConv2d) is lazy", "has no shape yet", "run the model once on a batch before training"
    refused(tmp_path, [monitor("side")], *said, module=Lazy())
    fit(trainer(tmp_path, [monitor("auto")]), Lazy())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated.*")
@pytest.mark.parametrize("monitor", [FilterMonitor, lambda: FeatureMapMonitor(probe())])
def test_a_scripted_part(monitor: Callable[[], L.Callback], tmp_path: Path) -> None:
    module = Scripted(torch.jit.script(nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU())))
    said = (
        "A ScriptModule cannot be watched",
        "layer 'net' is one",
        "Train the nn.Module it was scripted or traced from",
    )
    refused(tmp_path, [monitor()], *said, module=module)


# --- folders


def checkpointed(folder: Path, monitors: list[L.Callback], epochs: int, ckpt_path: Path | None = None) -> Path:
    checkpoint = ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)
    run = trainer(folder, [*monitors, checkpoint], max_epochs=epochs, enable_checkpointing=True)
    fit(run, TinyCNN(), validate=True, ckpt_path=ckpt_path)
    return folder / "checkpoints" / f"epoch={epochs - 1}.ckpt"


def test_a_folder_that_holds_another_run(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FilterMonitor()], max_epochs=1), TinyCNN())
    before = {path: path.read_bytes() for path in tmp_path.rglob("cnnlog/*")}
    run = trainer(tmp_path, [FilterMonitor()])
    with pytest.raises(
        ValueError, match=r"already holds a run of 2 snapshots.*expected a new folder.*ckpt_path"
    ) as caught:
        fit(run, TinyCNN())
    assert str(tmp_path) in str(caught.value)
    assert run.global_step == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("cnnlog/*")} == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([FilterMonitor("net.0")], "had other layers"),
        ([FilterMonitor(max_filters=3)], "had other settings"),
        ([FilterMonitor(probe=Probe.chart(32))], "had other probe"),
        ([FilterMonitor(every_n_train_steps=4)], "had other unit of steps"),
    ],
)
def test_a_resume_with_something_else(other: list[L.Callback], said: str, tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, [FilterMonitor()], 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("cnnlog/*")}
    with pytest.raises(ValueError, match=rf"the run that is resumed {said} .*begin a new run in another folder"):
        checkpointed(tmp_path, other, 3, saved)
    assert {path: path.read_bytes() for path in tmp_path.rglob("cnnlog/*")} == before


@pytest.mark.parametrize("damaged", ["manifest.json", "step-00000000.safetensors", "weights-baseline.safetensors"])
def test_a_resume_of_a_damaged_run(damaged: str, tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, [FilterMonitor()], 1)
    path = tmp_path / "run" / "v0" / "cnnlog" / damaged
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"{damaged} is .*truncated"):
        checkpointed(tmp_path, [FilterMonitor()], 3, saved)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cnnlog")]


def test_a_resume_into_the_folder_of_another_run(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path / "one", [FilterMonitor()], 1)
    checkpointed(tmp_path / "two", [FilterMonitor()], 1)
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # ModelCheckpoint's
    with pytest.raises(ValueError, match=r"holds another run than the one this checkpoint comes from.*new folder"):
        checkpointed(tmp_path / "two", [FilterMonitor()], 3, saved)


def test_the_loader_of_these_tests_is_fine(tmp_path: Path) -> None:
    """The control: with nothing wrong, the same fit is not refused."""
    run = trainer(tmp_path, [FilterMonitor(), FeatureMapMonitor(probe())], max_epochs=1)
    fit(run, TinyCNN())
    assert run.global_step == len(loader())
