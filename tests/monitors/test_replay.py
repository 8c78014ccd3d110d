"""Checkpoints become the very run that the monitors made; their order; what is refused."""

from __future__ import annotations

import pathlib
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import safetensors.numpy
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from support.training import TinyCNN, events, fit, image_steps, probe, trainer
from typer.testing import CliRunner, Result

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.cli.app import app
from cnnlog.kinds import Unit
from cnnlog.models.checkpoints import find, order
from cnnlog.monitors.replay import replay
from cnnlog.runs.finding import open_run
from cnnlog.runs.store import RunStore

EPOCHS = 3


class Named(TinyCNN):
    """With an argument that only the checkpoint knows."""

    def __init__(self, lr: float, *, dropout: float = 0.0) -> None:
        super().__init__(lr)
        self.save_hyperparameters()
        self.drop = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.drop(x))


class Whole(TinyCNN):
    """With all arguments in one."""

    def __init__(self, options: dict[str, float]) -> None:
        super().__init__(options["lr"])
        self.save_hyperparameters()


class Initial(L.Callback):
    """Saves the state before training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class Inside(L.Callback):
    """Saves in the middle of every epoch, and in its validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        if trainer.global_step % 4 == 2:
            trainer.save_checkpoint(self.folder / "middle" / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / "validation" / f"{trainer.current_epoch}.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with the monitors: its run in `run/v0`, its checkpoints in `all`."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    watch = [FilterMonitor(on_error="raise"), FeatureMapMonitor(probe(2), on_error="raise")]
    keep = ModelCheckpoint(dirpath=folder / "all", save_top_k=-1, save_last=True, save_on_train_epoch_end=True)
    callbacks = [Initial(folder / "all" / "before.ckpt"), Inside(folder), *watch, keep]
    fit(
        trainer(folder, callbacks, max_epochs=EPOCHS, enable_checkpointing=True),
        Named(0.05, dropout=0.5),
        validate=True,
    )
    return folder


def arrays(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: safetensors.numpy.load_file(path) for path in sorted((folder / "cnnlog").glob("*.safetensors"))}


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["replay", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def state(path: Path, model: torch.nn.Module, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), **more} if more else model.state_dict(), path)
    return path


# --- the promise -----------------------------------------------------------------------------------------------------


def test_the_run_is_the_monitors_own_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    made = replay([trained / "all"], tmp_path / "again", module="test_replay:Named", source=probe(2))
    assert made.steps == (0, 1, 2, 3)
    assert made.relative_to == "step 0 (before.ckpt)"
    expected, got = arrays(trained / "run" / "v0"), arrays(tmp_path / "again")
    assert expected.keys() == got.keys()
    assert sum(name.startswith("step-") for name in got) == EPOCHS + 1
    for name, held in expected.items():
        assert held.keys() == got[name].keys(), name
        for key, array in held.items():
            assert array.dtype == got[name][key].dtype
            assert array.tobytes() == got[name][key].tobytes(), f"{name}: {key}"
    one, other = (RunStore.open(str(at / "cnnlog")) for at in (trained / "run" / "v0", tmp_path / "again"))
    assert one.manifest.layers == other.manifest.layers
    assert one.manifest.probe == other.manifest.probe
    assert one.manifest.settings.keys() == other.manifest.settings.keys()
    for step in one.steps:
        a, b = one.read_record(step), other.read_record(step)
        assert (a.epoch, a.global_step) == (b.epoch, b.global_step)


def test_the_comparison_of_the_runs_can_fail(trained: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for name, epoch in (("epoch=0-step=4", 0), ("epoch=2-step=12", 1)):
        held = torch.load(trained / "all" / f"{name}.ckpt", weights_only=True)
        torch.save({**held, "epoch": epoch + 1, "loops": {}}, swapped / f"{name}.ckpt")
    replay([trained / "all" / "before.ckpt", swapped], tmp_path / "again", module="test_replay:Named", source=probe(2))
    expected, got = arrays(trained / "run" / "v0"), arrays(tmp_path / "again")
    same = {
        name: all(np.array_equal(array, got[name][key]) for key, array in held.items())
        for name, held in expected.items()
        if name in got and name.startswith("step-")
    }
    assert same == {
        "step-00000000.safetensors": True,
        "step-00000001.safetensors": True,
        "step-00000002.safetensors": False,
    }


def test_tensorboard_gets_the_very_pictures_and_numbers(trained: Path, tmp_path: Path) -> None:
    replay([trained / "all"], tmp_path / "again", module="test_replay:Named", source=probe(2))
    expected, got = events(trained / "run" / "v0"), events(tmp_path / "again")
    assert image_steps(expected) == image_steps(got)
    for tag in image_steps(expected):
        one, other = ([image.encoded_image_string for image in found.Images(tag)] for found in (expected, got))
        assert one == other, tag
    ours = got.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in ours} == {"drift_cosine", "drift_l2", "update_l2", "dead_share", "cka"}
    for tag in ours:
        assert [s.value for s in expected.Scalars(tag)] == pytest.approx(
            [s.value for s in got.Scalars(tag)], nan_ok=True
        )


# --- order -----------------------------------------------------------------------------------------------------------


def test_epochs_complete_are_counted_also_in_a_validation(trained: Path) -> None:
    found = order(find([trained / "validation"]))
    assert [checkpoint.step for checkpoint in found.checkpoints] == [1, 2, 3]
    assert [checkpoint.global_step for checkpoint in found.checkpoints] == [4, 8, 12]


def test_the_last_checkpoint_again_is_left_out_and_said(trained: Path) -> None:
    found = order(find([trained / "all"]))
    assert [checkpoint.path.name for checkpoint in found.checkpoints][::3] == ["before.ckpt", "epoch=2-step=12.ckpt"]
    assert found.notes == ("last.ckpt holds the weights of epoch=2-step=12.ckpt and is left out",)


def test_one_from_within_an_epoch_needs_steps_to_be_counted(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2\.ckpt was saved within an epoch, after 0 whole ones.*--unit step"):
        order(find([trained / "middle"]))
    out = tmp_path / "steps"
    made = replay([trained / "middle"], out, module="test_replay:Named", unit=Unit.STEP, tensorboard=False)
    assert made.steps == (2, 6, 10)
    assert made.relative_to == "step 2 (2.ckpt)"
    run = open_run(out)
    assert run.manifest.unit == "step"
    assert run.manifest.baseline_step == 2
    assert run.layers == ("net.0", "net.3")
    assert "only filters are recorded" in " ".join(made.notes)


@pytest.mark.parametrize(
    ("names", "steps", "how"),
    [
        (["net_10.pt", "net_2.pt", "net_1.pt"], [1, 2, 10], "the numbers in their names"),
        (["e=005-l=0.9.pt", "e=010-l=0.7.pt"], [5, 10], "the numbers in their names"),
        (["a.pt", "c.pt", "b10.pt", "b9.pt"], [1, 2, 3, 4], "their places, sorted by name"),
    ],
)
def test_without_epochs_names_are_sorted_by_their_numbers(
    names: list[str], steps: list[int], how: str, tmp_path: Path
) -> None:
    for name in names:
        state(tmp_path / name, TinyCNN())
    found = order(find([tmp_path]))
    assert [checkpoint.step for checkpoint in found.checkpoints] == steps
    assert how in found.notes[0]
    assert [checkpoint.path.name for checkpoint in found.checkpoints] == {
        1: ["net_1.pt", "net_2.pt", "net_10.pt"],
        5: ["e=005-l=0.9.pt", "e=010-l=0.7.pt"],
    }.get(steps[0] if steps[-1] != 4 else 0, ["a.pt", "b9.pt", "b10.pt", "c.pt"])


def test_an_epoch_that_a_plain_checkpoint_holds_is_its_step(tmp_path: Path) -> None:
    for name, epoch in (("a", 7), ("b", 3)):
        state(tmp_path / f"{name}.pt", TinyCNN(), epoch=epoch)
    assert [checkpoint.step for checkpoint in order(find([tmp_path])).checkpoints] == [3, 7]


def test_the_one_folder_below_that_has_checkpoints_is_found(trained: Path, tmp_path: Path) -> None:
    state(tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "a.ckpt", TinyCNN())
    assert [path.name for path in find([tmp_path])] == ["a.ckpt"]
    with pytest.raises(ValueError, match=r"checkpoints in 3 folders.*give one of"):
        find([trained])


# --- networks and baselines ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezenets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squeezenets")
    torch.manual_seed(1)
    for epoch in (1, 2):
        state(folder / "tuned" / f"{epoch}.pt", torchvision.models.squeezenet1_1(num_classes=3))
    state(folder / "pretrained.pt", torchvision.models.squeezenet1_1(num_classes=1000))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)).save(folder / "probe.png")
    return folder


def test_an_architecture_its_image_and_a_baseline_with_another_head(squeezenets: Path, tmp_path: Path) -> None:
    options = ("--arch", "squeezenet1_1", "--image", squeezenets / "probe.png")
    baseline = ("--baseline", squeezenets / "pretrained.pt")
    text = command(squeezenets / "tuned", *options, *baseline, "-o", tmp_path / "my run").output
    assert f"View: cnnlog tensorboard {shlex.quote(str(tmp_path / 'my run'))}" in text.splitlines()
    assert "not watched, for the baseline has no such layer of that shape: classifier.1" in text
    assert "steps 0, 1, 2; drift and changes are relative to step 0" in " ".join(text.split())
    run = open_run(tmp_path / "my run")
    assert "classifier.1" not in run.layers
    weights, step = run.weights("baseline")
    expected = torch.load(squeezenets / "pretrained.pt", weights_only=True)["features.0.weight"]
    np.testing.assert_array_equal(weights["features.0"], expected.numpy())
    assert step == 0
    assert run.manifest.probe["shape"] == [1, 3, 224, 224]


def test_without_a_baseline_numbers_are_relative_to_the_first_checkpoint(squeezenets: Path, tmp_path: Path) -> None:
    text = command(squeezenets / "tuned", "--layers", "features.0", "--no-tensorboard", "-o", tmp_path / "run").output
    assert "relative to step 1 (1.pt)" in " ".join(text.split())
    run = open_run(tmp_path / "run")
    assert run.manifest.architecture == "squeezenet1_1"
    assert run.numbers("filter_angle", "features.0", 1).max() == 0
    assert run.numbers("filter_angle", "features.0", 2).min() > 0


def test_the_probe_of_another_run(trained: Path, tmp_path: Path) -> None:
    checkpoints = [trained / "all" / name for name in ("before.ckpt", "epoch=0-step=4.ckpt")]
    options = ("--module", "test_replay:Named", "--probe-of", trained / "run", "-o", tmp_path / "again")
    command(*checkpoints, *options)
    one, other = open_run(trained / "run"), open_run(tmp_path / "again")
    assert one.manifest.probe == other.manifest.probe
    np.testing.assert_array_equal(one.feature_maps("net.3", 1), other.feature_maps("net.3", 1))


def test_the_chart_as_the_probe(trained: Path, tmp_path: Path) -> None:
    options = ("--module", "test_replay:Named", "--chart", "--size", 48, "-o", tmp_path / "again")
    command(trained / "all" / "before.ckpt", *options)
    assert open_run(tmp_path / "again").manifest.probe["shape"] == [1, 3, 48, 48]


def test_hyper_parameters_that_are_one_argument(tmp_path: Path) -> None:
    held = {"hyper_parameters": {"lr": 0.1}, "hparams_name": "options", "epoch": 2}
    path = state(tmp_path / "a.ckpt", TinyCNN(), **held)
    made = replay([path], tmp_path / "run", module="test_replay:Whole", tensorboard=False)
    assert made.steps == (2,)


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_what_needs_unpickling_is_refused_by_name(tmp_path: Path) -> None:
    path = state(tmp_path / "a.ckpt", TinyCNN(), hyper_parameters={"folder": pathlib.PurePosixPath("x")})
    with pytest.raises(ValueError, match=r"other objects than tensors \(pathlib.*never loaded because"):
        command(path, "--module", "support.training:TinyCNN", "-o", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


class Flat(torch.nn.Module):
    """Without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("empty", "--module", "support.training:TinyCNN"), r"Expected checkpoints .* but there are none"),
        (("missing",), "no checkpoint and no folder at 'missing'"),
        (("flat.pt", "--module", "test_replay:Flat"), "watches 2-D and 3-D convolutions.*has none"),
        (("flat.pt",), "fits none of torchvision's classifiers"),
        (("tiny.pt",), "fits none of torchvision's classifiers"),
        (("tiny.pt", "--arch", "alexnett"), "did you mean alexnet"),
        (("tiny.pt", "--arch", "alexnet"), "tiny.pt does not fit AlexNet"),
        (("tiny.pt", "--module", "support.training:TinyCNNN"), "support.training:TinyCNNN cannot be imported"),
        (("tiny.pt", "--module", "no_such_module:A"), "cannot be imported"),
        (("tiny.pt", "--module", "training"), "package.module:Class, but got 'training'"),
        (("tiny.pt", "--module", "support.training:loader"), "is no LightningModule or nn.Module class"),
        (("tiny.pt", "--module", "test_replay:Named"), "needs lr, and .*tiny.pt does not hold it"),
        (
            ("tiny.pt", "--module", "support.training:TinyCNN", "--arch", "alexnet"),
            "by arch or by module, but got both",
        ),
        (("tiny.pt", "--module", "support.training:TinyCNN", "--layers", "net.9"), "no layer 'net.9'"),
        (("tiny.pt", "--module", "support.training:TinyCNN", "--baseline", "flat.pt"), "flat.pt does not fit TinyCNN"),
        (("tiny.pt", "--module", "support.training:TinyCNN", "--baseline", "no.pt"), "no.pt, but there is none"),
        (
            ("tiny.pt", "--module", "support.training:TinyCNN", "--baseline", "DEFAULT"),
            "is a file of weights .* got 'DEFAULT'",
        ),
        (("tiny.pt", "--module", "support.training:TinyCNN", "--image", "no.png"), "no probe image at 'no.png'"),
        (
            ("tiny.pt", "--module", "support.training:TinyCNN", "--chart", "--image", "no.png"),
            "one probe, but --image and --chart",
        ),
        (
            ("tiny.pt", "--module", "support.training:TinyCNN", "--chart", "--mean", "a"),
            "--mean and --std take numbers",
        ),
        (("tiny.pt", "--module", "support.training:TinyCNN", "--unit", "step"), "tiny.pt holds no global_step"),
        (("tiny.pt", "other.pt", "--module", "support.training:TinyCNN"), "other.pt is truncated or no PyTorch file"),
        (("one.pt", "two.pt", "--module", "support.training:TinyCNN"), "both of step 4, with other weights"),
        (("zero.pt", "--module", "support.training:TinyCNN", "--baseline", "tiny.pt"), "is of step 0 already"),
        (("tiny.pt", "--module", "support.training:TinyCNN", "-o", "taken"), "'taken' is there already"),
        (("tiny.pt", "--module", "support.training:TinyCNN", "-o", "tiny.pt/run"), "'tiny.pt/run' cannot be made"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    state(tmp_path / "tiny.pt", TinyCNN())
    state(tmp_path / "flat.pt", Flat())
    (tmp_path / "other.pt").write_bytes((tmp_path / "tiny.pt").read_bytes()[:500])
    for name, epoch in (("zero", 0), ("one", 4), ("two", 4)):
        state(tmp_path / f"{name}.pt", TinyCNN(), epoch=epoch)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        command(*arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_that_fails_on_the_way_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    state(folder / "1.pt", TinyCNN())
    other = TinyCNN()
    other.net[0] = torch.nn.Conv2d(3, 7, 5, padding=2)
    state(folder / "2.pt", other)
    with pytest.raises(ValueError, match=r"2\.pt does not fit TinyCNN: expected net.0.weight of shape \[6, 3, 5, 5\]"):
        replay([folder], tmp_path / "run", module="support.training:TinyCNN", source=probe())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
