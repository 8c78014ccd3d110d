"""`cnnlog.watch`: a loop without Lightning leaves the monitors' own files, and trains as if unwatched."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support.inertness import differences, loop_trace
from support.training import TinyCNN, events, fit, image_steps, loader, probe, trainer
from support.zoo import ZOO
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, watch
from cnnlog.monitors.loop import Watcher
from cnnlog.runs.finding import open_run
from cnnlog.runs.store import RunStore

AWKWARD = (
    *("in_place", "frozen_norm", "shared", "spectral_norm_old", "weight_norm_old", "dropout_first", "fails_midway"),
    *("draws", "mutates", "momentum_in_place", "caches", "late", "keeps_hooks"),
)


def model() -> TinyCNN:
    torch.manual_seed(0)
    return TinyCNN()


def optimiser(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)


def epoch(module: nn.Module, sgd: torch.optim.Optimizer) -> None:
    for images, labels in loader():
        sgd.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        sgd.step()


def train(module: nn.Module, watcher: Watcher, *, epochs: int = 3) -> None:
    sgd = optimiser(module)
    watcher.snapshot(0)
    for done in range(1, epochs + 1):
        epoch(module, sgd)
        watcher.snapshot(done, global_step=done * len(loader()))


def files(folder: Path) -> dict[str, tuple[Any, Any]]:
    """What the store's files hold: the header's facts, and the bytes of each array.

    How large an optimiser step was is left out: a loop of one's own only knows the mean step since the snapshot before.
    """
    return {path.name: _content(path.read_bytes()) for path in folder.glob("cnnlog/*.*") if path.suffix != ".json"}


def _content(data: bytes) -> tuple[Any, Any]:
    if data.startswith(b"\x89PNG"):
        return None, data
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    facts = header.pop("__metadata__")
    facts.pop("metrics", None)  # of a loop of one's own nothing is known
    arrays = {
        key: (array["dtype"], array["shape"], data[slice(*(end + offset for offset in array["data_offsets"]))])
        for key, array in header.items()
        if "update_ratio" not in key
    }
    return facts, arrays


# --- the same inertness


def watched(image: tuple[int, int, int], folder: Path) -> Callable[[nn.Module], Watcher]:
    tensor = torch.rand(2, *image, generator=torch.Generator().manual_seed(8))
    return lambda net: watch(net, Probe.from_tensor(tensor), folder)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_nets_train_as_if_unwatched(name: str, tmp_path: Path) -> None:
    case = ZOO[name]
    plain = loop_trace(case.build, case.image, None)
    fails = name == "fails_midway"
    with pytest.warns(UserWarning, match="cnnlog: .*evaluates only before training") if fails else nullcontext():
        seen = loop_trace(case.build, case.image, watched(case.image, tmp_path))
    assert differences(plain, seen) == []
    assert open_run(tmp_path).steps == ((0,) if fails else (0, 1, 2, 3))


def test_a_torchvision_net_trains_as_if_unwatched(tmp_path: Path) -> None:
    image = (3, 32, 32)

    def build() -> nn.Module:
        return torchvision.models.mobilenet_v3_small(weights=None, num_classes=5)

    plain = loop_trace(build, image, None, epochs=2)
    assert differences(plain, loop_trace(build, image, watched(image, tmp_path), epochs=2)) == []


class Careless:
    """Watches as people do: eval, forward, train."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def snapshot(self, step: int) -> None:
        self.net.eval()
        with torch.no_grad():
            self.net(torch.rand(2, 3, 12, 12))
        self.net.train()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("frozen_norm", "flag net.norm"),
        ("draws", "python generator"),
        ("mutates", "attribute net.calls"),
        ("momentum_in_place", "state net.key.weight"),
        ("dropout_first", "torch generator"),
    ],
)
def test_the_comparison_sees_a_careless_watcher(name: str, seen: str) -> None:
    case = ZOO[name]
    plain = loop_trace(case.build, case.image, None)
    assert differences(plain, loop_trace(case.build, case.image, None)) == []
    assert seen in differences(plain, loop_trace(case.build, case.image, Careless))


# --- the same files and pictures


def test_the_run_is_the_monitors_own_byte_for_byte(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FilterMonitor(), FeatureMapMonitor(probe(2))]), model())
    module = model()
    with watch(module, probe(2), tmp_path / "watched") as watcher:
        train(module, watcher)
    theirs, ours = tmp_path / "run" / "v0", tmp_path / "watched"
    assert files(theirs) == files(ours)
    assert {f"step-{step:08d}.safetensors" for step in range(4)} < files(ours).keys()
    one, other = (vars(RunStore.open(str(folder / "cnnlog")).manifest) for folder in (theirs, ours))
    assert {key for key in one if one[key] != other[key]} <= {"run_id", "created"}

    expected, got = events(theirs), events(ours)
    assert image_steps(expected) == image_steps(got)
    for tag in image_steps(expected):
        pictures = [[image.encoded_image_string for image in found.Images(tag)] for found in (expected, got)]
        assert pictures[0] == pictures[1], tag
    theirs_alone = set(expected.Tags()["scalars"]) - set(got.Tags()["scalars"])
    assert {tag for tag in theirs_alone if "/update_ratio/" not in tag} == {"loss", "epoch"}
    for tag in got.Tags()["scalars"]:
        if "/mean_update_ratio/" in tag:
            continue
        numbers = [[(s.step, repr(s.value)) for s in found.Scalars(tag)] for found in (expected, got)]
        assert numbers[0] == numbers[1], tag
    assert got.Tensors("layers")[0].tensor_proto == expected.Tensors("layers")[0].tensor_proto


def test_the_comparison_of_the_files_can_fail(tmp_path: Path) -> None:
    for name, lr in (("a", 1e-2), ("b", 2e-2)):
        module = model()
        with watch(module, probe(), tmp_path / name) as watcher:
            watcher.snapshot(0)
            epoch(module, torch.optim.SGD(module.parameters(), lr=lr))
            watcher.snapshot(1)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {
        "step-00000001.safetensors",
        "weights-latest.safetensors",
        "outputs-latest.safetensors",
    }


def test_the_first_snapshot_is_the_baseline_whatever_its_step(tmp_path: Path) -> None:
    module = model()
    with watch(module, probe(), tmp_path, unit="step") as watcher:
        for step in (10, 20):
            watcher.snapshot(step)
            epoch(module, optimiser(module))
    run = open_run(tmp_path)
    assert (run.manifest.baseline_step, run.manifest.unit, run.steps) == (10, "step", (10, 20))
    assert run.numbers("weight_change", "net.0", 10) == 0 < run.numbers("weight_change", "net.0", 20)
    record = RunStore.open(watcher.folder).read_record(20)
    assert (record.epoch, record.global_step) == (0, 20)
    assert image_steps(events(tmp_path))["filters/00_net.0"] == [10, 20]


def test_without_a_probe_filters_alone_are_watched(tmp_path: Path) -> None:
    with watch(model(), None, tmp_path) as watcher:
        watcher.snapshot(0)
        watcher.snapshot(1)
    assert {tag.split("/")[0] for tag in image_steps(events(tmp_path))} == {
        "filters",
        "filters_change",
        "filters_strip",
    }
    assert not (tmp_path / "cnnlog" / "probe.png").exists()


def test_every_option_is_heard(tmp_path: Path) -> None:
    options: dict[str, Any] = {"value_range": "layer", "cmap": "gray", "width": 200, "change": False}
    more: dict[str, Any] = {"max_filters": 5, "max_maps": 3, "view": "mean", "max_slices": 4, "histograms": True}
    with watch(
        model(), probe(), str(tmp_path), layers="net.3", map_layers=[nn.ReLU], through="net", **options, **more
    ) as watcher:
        watcher.snapshot(0)
        assert watcher.layers == ("net.1", "net.3", "net.4")
    settings = open_run(tmp_path).manifest.settings
    assert settings["filters"] == {
        **options,
        **{"layers": ["net.3"], "unit": "epoch", "every": 1, "shown": 5, "view": "mean", "slices": 4},
        **{"histograms": True, "weights": "train"},
    }
    assert {key: settings["feature_maps"][key] for key in ("layers", "shown", "cmap")} == {
        **{"layers": ["ReLU"], "shown": 3, "cmap": "gray"}
    }
    tags = events(tmp_path).Tags()
    assert not [tag for tag in tags["images"] if "_change" in tag]
    assert "histograms_filters/02_net.3" in tags["tensors"]


def test_run_executes_the_forward(tmp_path: Path) -> None:
    def half(module: nn.Module, tensor: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            module(tensor)

    with watch(model(), probe(), tmp_path, run=half) as watcher:
        watcher.snapshot(0)
    maps = open_run(tmp_path).feature_maps("net.0", 0)
    assert not (maps.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("kind", ["of mine", "none"])
def test_the_event_file(kind: str, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "mine")) as writer:
        with watch(model(), probe(), tmp_path / "run", tensorboard=writer if kind == "of mine" else False) as watcher:
            watcher.snapshot(0)
        writer.add_scalar("loss", 1.0, 1)  # it is still open
    mine = events(tmp_path / "mine").Tags()
    assert mine["scalars"][-1] == "loss"
    assert bool(mine["images"]) == (kind == "of mine")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cnnlog"]


def test_a_wrapper_is_taken_off(tmp_path: Path) -> None:
    with watch(nn.DataParallel(model()), probe(), tmp_path) as watcher:
        watcher.snapshot(0)
    assert watcher.layers == ("net.0", "net.3")


def test_a_loop_that_ends_without_close_keeps_its_snapshots(tmp_path: Path) -> None:
    code = f"""
import torch, cnnlog
model = torch.nn.Conv2d(3, 4, 3)
watcher = cnnlog.watch(torch.nn.Sequential(model), cnnlog.Probe.chart(32), {str(tmp_path)!r})
for step in range(4):
    watcher.snapshot(step)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert open_run(tmp_path).steps == (0, 1, 2, 3)
    assert image_steps(events(tmp_path))["filters/00_0"] == [0, 1, 2, 3]


def test_neither_torch_nor_lightning_is_loaded_before_its_use() -> None:
    code = "import sys, cnnlog; print('torch' in sys.modules); cnnlog.watch; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


# --- going on


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    module = model()
    with watch(module, probe(), tmp_path / "whole") as watcher:
        train(module, watcher, epochs=4)
    module = model()
    sgd = optimiser(module)
    for start, end in ((0, 2), (2, 4)):
        with watch(module, probe(), tmp_path / "parts", resume=start) as watcher:
            watcher.snapshot(start, global_step=4 * start)
            for done in range(start + 1, end + 1):
                epoch(module, sgd)
                watcher.snapshot(done, global_step=4 * done)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    steps = image_steps(events(tmp_path / "parts"))
    assert steps["filters/00_net.0"] == [0, 1, 2, 3, 4]
    assert steps["filters_change/00_net.0"] == [1, 2, 3, 4]


def stored(folder: Path) -> None:
    with watch(model(), probe(), folder, tensorboard=False) as watcher:
        watcher.snapshot(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"already holds a run of 1 snapshots.*another log_dir.*resume=STEP"),
        ({"resume": 1, "layers": "net.0"}, r"the run that is resumed had other layers"),
        ({"resume": 1, "max_maps": 2}, r"the run that is resumed had other settings"),
    ],
)
def test_another_run_in_the_folder_is_not_touched(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    stored(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        watch(model(), probe(), tmp_path, **options)
    assert files(tmp_path) == before


def test_a_run_to_go_on_with_must_be_there_and_whole(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no cnnlog run"):
        watch(model(), probe(), tmp_path, resume=1)
    stored(tmp_path)
    (tmp_path / "cnnlog" / "weights-baseline.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be continued: .*truncated"):
        watch(model(), probe(), tmp_path, resume=1)


# --- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "net.9"}, r"no layer 'net\.9'"),
        ({"map_layers": "head"}, r"has no feature maps"),
        ({"view": "colour"}, r"watch expected view as one of"),
        ({"view": "rgb"}, r"view \"rgb\" needs"),
        ({"max_filters": 0}, r"watch expected max_filters to be a whole number from 1 on, got 0"),
        ({"max_maps": 0}, r"watch expected max_maps to be a whole number from 1 on, got 0"),
        ({"width": 3}, r"watch expected width"),
        ({"value_range": "all"}, r"watch expected value_range as one of channel, layer, step, got 'all'"),
        ({"cmap": "virdis"}, "did you mean viridis"),
        ({"on_error": "ignore"}, r"watch expected on_error as one of warn, raise, got 'ignore'"),
        ({"unit": "batch"}, r"watch expected unit as one of epoch, step, got 'batch'"),
        ({"tensorboard": "yes"}, r"watch expected tensorboard as one of True, False, got 'yes'"),
        ({"resume": -1}, r"watch expected resume to be a whole number from 0 on, got -1"),
        ({"through": "nett"}, r"names no sub-module of TinyCNN"),
    ],
)
def test_wrong_arguments_are_refused_at_once_and_nothing_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        watch(model(), probe(), tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_kinds_of_arguments() -> None:
    with pytest.raises(TypeError, match="watch expected layers as"):
        watch(model(), probe(), "nowhere", layers=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="watch expected probe as a Probe or the paths of images, got Tensor"):
        watch(model(), probe().tensor, "nowhere")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no probe image at 'shark\.jpg'"):
        watch(model(), "shark.jpg", "nowhere")
    with pytest.raises(ValueError, match=r"The probe \[1, 1, 32, 32\] cannot go through TinyCNN"):
        watch(model(), Probe.from_tensor(torch.rand(1, 1, 32, 32)), "nowhere")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([1, 1], r"no snapshot of step 1: steps must rise, and 1 is there"),
        ([2, 1, 0], r"no snapshot of step 1: steps must rise, and 2 is there"),
        ([0, "1"], r"no snapshot of step '1': expected a whole number from 0 on"),
        ([-1], r"no snapshot of step -1: expected a whole number"),
    ],
)
def test_steps_must_rise(steps: list[Any], message: str, tmp_path: Path) -> None:
    def loop(folder: Path, **more: Any) -> None:
        with watch(model(), probe(), folder, **more) as watcher:
            for step in steps:
                watcher.snapshot(step)

    with pytest.warns(UserWarning, match=message) as caught:
        loop(tmp_path / "warns")
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match=message):
        loop(tmp_path / "raises", on_error="raise")


@pytest.mark.parametrize("count", [3.0, True, -1, None, "4"])
def test_a_count_of_steps_is_a_whole_number(count: Any, tmp_path: Path) -> None:
    """Else it would stand in every file of a step, and nobody could read them."""
    with watch(model(), probe(), tmp_path) as watcher:
        watcher.snapshot(0)
        with pytest.warns(UserWarning, match=r"no snapshot of step 1: expected global_step as a whole number from 0"):
            watcher.snapshot(1, global_step=count)
        watcher.snapshot(2, global_step=8)
    assert cnnlog.open_run(tmp_path).steps == (0, 2)


def test_a_closed_watcher_takes_nothing(tmp_path: Path) -> None:
    watcher = watch(model(), probe(), tmp_path)
    watcher.snapshot(0)
    watcher.close()
    watcher.close()
    with pytest.warns(UserWarning, match="no snapshot of step 1: the watcher is closed"):
        watcher.snapshot(1)
    assert open_run(tmp_path).steps == (0,)


class Breaks(TinyCNN):
    """Cannot be run while `broken`."""

    broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.broken:
            raise RuntimeError("broken net")
        return super().forward(x)


def test_a_probe_that_fails_warns_once_and_later_ones_are_tried(tmp_path: Path) -> None:
    module = Breaks()

    def loop() -> None:
        with watch(module, probe(), tmp_path) as watcher:
            for step, broken in enumerate((True, True, False, True, False)):
                module.broken = broken
                watcher.snapshot(step)

    module.broken = True
    with pytest.raises(ValueError, match="broken net"):  # at the start, it is refused
        loop()
    module.broken = False
    with pytest.warns(UserWarning, match=r"no snapshot of step 0.*broken net") as caught:
        loop()
    assert len(caught) == 1
    run = open_run(tmp_path)
    assert (run.steps, run.manifest.baseline_step) == ((2, 4), 2)


def test_on_error_raise_raises(tmp_path: Path) -> None:
    module = Breaks()

    def loop() -> None:
        with watch(module, probe(), tmp_path, on_error="raise") as watcher:
            watcher.snapshot(0)
            module.broken = True
            watcher.snapshot(1)

    with pytest.raises(RuntimeError, match=r"cnnlog: no snapshot of step 1.*broken net"):
        loop()
    assert open_run(tmp_path).steps == (0,)


def test_a_store_that_cannot_be_written_costs_one_warning_and_its_pictures_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def loop() -> None:
        module = model()
        with watch(module, probe(), tmp_path / "file", tensorboard=False) as watcher:
            train(module, watcher)

    with pytest.warns(UserWarning, match="^cnnlog: ") as caught:
        loop()
    said = sorted(str(warning.message) for warning in caught)
    assert len(said) == 2
    assert said[0].startswith("cnnlog: step 0 could not be stored in ")
    assert said[1].startswith("cnnlog: the folder of pictures did not take the pictures of step 0")


@pytest.mark.parametrize("own", [True, False])
def test_the_loops_own_exception_is_not_hidden(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def full(store: RunStore, record: Any) -> int:
        gate.wait()
        raise OSError("disk full")

    def loop() -> None:
        with watch(model(), probe(), tmp_path, on_error="raise") as watcher:
            watcher.snapshot(0)
            monkeypatch.setattr(RunStore, "write_record", full)
            watcher.snapshot(1)  # fails in the background, once the gate is open
            gate.set()
            if own:
                raise KeyError("mine")

    with pytest.warns(UserWarning, match="disk full") if own else nullcontext():  # noqa: SIM117
        with pytest.raises(KeyError if own else RuntimeError, match="mine" if own else "disk full"):
            loop()
    assert open_run(tmp_path).steps == (0,)
