"""`cnnlog compare`, as a person types it; weights as sides; the TensorBoard run; the example."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import os
import runpy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from support.pages import Seen
from support.places import EXAMPLES
from support.stored_runs import moving, write_run
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import nn

from cnnlog.capture.capture import capture
from cnnlog.capture.probe import Probe
from cnnlog.cli import app
from cnnlog.comparison.comparison import compare
from cnnlog.models.torchvision import Loaded, default_transform, load_classifier
from cnnlog.rendering.grids import filters_grid
from cnnlog.reports import tensorboard_run
from cnnlog.runs import whole_files

EXAMPLE = EXAMPLES / "compare.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    slow = write_run(folder / "slow", moving(0, 0.1))
    return slow, write_run(folder / "fast", moving(1, 0.3), steps=range(5))


@pytest.fixture
def cnnlog(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types a command; gives its exit code, output and error output."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cnnlog", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return typed


# --- the command


def test_the_table_and_every_file(cnnlog: Any, runs: tuple[Path, Path], tmp_path: Path) -> None:
    page, numbers, table = tmp_path / "page.html", tmp_path / "numbers.json", tmp_path / "table.csv"
    options = ("-o", page, "--json", numbers, "--csv", table, "--tensorboard", tmp_path / "board")
    code, out, err = cnnlog("compare", *runs, *options)
    expected = compare(*runs)
    assert (code, err) == (0, "")
    assert out.startswith(expected.to_text())
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(expected.to_dict()))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["conv1", "conv2"]
    assert float(rows[1]["weight_distance_B"]) == pytest.approx(expected.rows()[1].weight_distance[0])
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "numbers.json", "page.html", "table.csv"]
    assert f"Written: {page}, {numbers}, {table}, {tmp_path / 'board'}" in out


def test_one_run_alone_and_pinned_ones(cnnlog: Any, runs: tuple[Path, Path]) -> None:
    code, out, _ = cnnlog("compare", runs[0])
    assert code == 0
    assert out.splitlines()[:2] == ["A: slow@baseline (step 0)", "B: slow (step 3)"]
    code, out, _ = cnnlog("compare", f"{runs[0]}@1", f"{runs[1]}@last")
    assert out.splitlines()[:2] == ["A: slow@1 (step 1)", "B: fast@last (step 4)"]


def test_bars_are_for_terminals_alone(cnnlog: Any, runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cnnlog("compare", *runs)[2] == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "\x1b[" in cnnlog("compare", *runs)[2]


@pytest.mark.parametrize("option", ["-o", "--json", "--csv", "--tensorboard"])
def test_nothing_is_overwritten_unless_forced(
    cnnlog: Any, runs: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    target = tmp_path / ("board" if option == "--tensorboard" else "file.html")
    held = target / "mine.txt" if option == "--tensorboard" else target
    held.parent.mkdir(exist_ok=True)
    held.write_text("mine")
    code, out, err = cnnlog("compare", *runs, option, target)
    assert (code, out) == (2, "")
    assert "--force" in err
    assert len(err.splitlines()) == 1
    assert held.read_text() == "mine"
    assert cnnlog("compare", *runs, option, target, "--force")[0] == 0
    if option == "--tensorboard":
        assert held.read_text() == "mine"
        assert cnnlog("compare", *runs, option, target, "--force")[0] == 0
        assert len(list(target.iterdir())) == 2  # the comparison before it is replaced
    else:
        assert held.read_bytes() != b"mine"


def wrong(folder: Path, runs: tuple[Path, Path]) -> dict[str, tuple[tuple[object, ...], str]]:
    """Name -> arguments, and a part of the sentence."""
    empty = folder / "empty"
    empty.mkdir()
    newer = write_run(folder / "newer")
    text = json.loads((newer / "cnnlog" / "manifest.json").read_text())
    (newer / "cnnlog" / "manifest.json").write_text(json.dumps({**text, "version": 3}))
    other = write_run(folder / "other", lambda step: ({"stem": np.ones((2, 3, 3, 3), np.float32)}, {}))
    torch.save({"fc.weight": torch.ones(3, 4)}, folder / "linear.pt")
    torch.save({"state_dict": {"a.weight": torch.ones(3, 3, 3, 3)}, "x": Path("x")}, folder / "pickle.ckpt")
    (folder / "broken.safetensors").write_bytes(b"not much")
    unlike = {"other.weight": torch.ones(3, 3, 3, 3)}
    safetensors.torch.save_file(unlike, folder / "unlike.safetensors")
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    return {
        "no run": ((empty,), "holds no cnnlog run"),
        "nothing": ((folder / "nowhere",), "does not exist"),
        "several runs": (
            (runs[0].parent,),
            f"holds 2 runs, and one is needed; give one of {runs[1]}/cnnlog, {runs[0]}/cnnlog",
        ),
        "no such step": ((f"{runs[0]}@8",), "slow has no step 8; the nearest is 3"),
        "no step": ((f"{runs[0]}@end",), "expected a step's number, baseline or last behind the @"),
        "newer store": ((newer,), "format version 3, and this cnnlog reads up to 2; upgrade cnnlog"),
        "no layer in common": ((runs[0], other), "no layer in common: slow has conv1, conv2; other has stem"),
        "no convolution": ((runs[0], folder / "linear.pt"), "linear.pt holds no filters: expected at least one weight"),
        "needs pickle": ((runs[0], folder / "pickle.ckpt"), "are never loaded because that would run code"),
        "broken weights": ((runs[0], folder / "broken.safetensors"), "is truncated or no safetensors file"),
        "one file for two": ((runs[0], "--json", folder / "numbers", "--csv", folder / "numbers"), "the same file"),
        "no weights": ((runs[0], folder / "gone.ckpt"), "Expected a file of weights at"),
        "unlike weights": ((runs[0], folder / "unlike.safetensors"), "no layer in common"),
        "weights alone": ((folder / "unlike.safetensors",), "one side alone must be a run"),
        "no such network": ((runs[0], "torchvision:alexnot:none"), "did you mean alexnet"),
        "unknown network": (
            (runs[0], folder / "unlike.safetensors", "--image", folder / "image.png"),
            "fits none of torchvision's classifiers",
        ),
        "nothing to run": (
            (*runs, "--image", folder / "image.png"),
            "are for weights, and no side is a file of weights",
        ),
        "a folder": ((*runs, "-o", empty), "is a folder; give the name of a file"),
        "no folder": ((*runs, "--json", folder / "no" / "x.json"), "the folder of"),
        "a file": ((*runs, "--tensorboard", folder / "linear.pt"), "is a file; give a folder"),
    }


def test_wrong_input_is_one_sentence_with_exit_code_2(cnnlog: Any, runs: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    for name, (arguments, sentence) in wrong(folder, runs).items():
        before = sorted(folder.rglob("*"))
        code, out, err = cnnlog("compare", *arguments)
        assert (code, out) == (2, ""), name
        assert sentence in err, name
        assert err.startswith("cnnlog: "), name
        assert len(err.strip().splitlines()) == 1, name
        assert sorted(folder.rglob("*")) == before, name


def held_to_permissions() -> None:
    """Take from a child of root, before it becomes another program, the right to write everywhere (Linux)."""
    drop_from_bounding_set, dac_override = 24, 1
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) != 0:
        raise OSError("this root may not give up a capability")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how root gives up a right is known of Linux only")
def test_a_read_only_target_is_refused_before_anything_is_read(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    command = [str(Path(sys.executable).with_name("cnnlog"))]
    for arguments in (
        ("compare", *runs, "-o", tmp_path / "page.html"),
        ("compare", *runs, "--tensorboard", tmp_path / "board"),
        ("export", runs[0], "--strip", "-o", tmp_path / "strip.png"),
    ):
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            preexec_fn=held_to_permissions,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "is read-only; give a" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    tmp_path.chmod(0o755)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path, *, force: bool) -> None:
        with whole_files.whole(path, force=force) as temporary:
            temporary.write_text("half")
            raise OSError("No space left on device")

    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for path, force in ((tmp_path / "new.txt", False), (kept, True)):
        with pytest.raises(OSError, match="No space left"):
            fail(path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "mine"


def test_a_truncated_step_is_skipped_and_said(cnnlog: Any, tmp_path: Path) -> None:
    file = write_run(tmp_path / "run") / "cnnlog" / "step-00000002.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    code, out, _ = cnnlog("compare", tmp_path / "run")
    assert code == 0
    assert f"Note: skipped: {file} is truncated" in out


def test_each_side_in_its_own_range_if_you_ask_for_it(runs: tuple[Path, Path], tmp_path: Path, cnnlog: Any) -> None:
    pages = {}
    for name, options in (("shared", ()), ("own", ("--range", "own"))):
        code, _, _ = cnnlog("compare", *runs, "-o", tmp_path / name, *options)
        assert code == 0
        seen = Seen((tmp_path / name).read_text(encoding="utf-8"))
        highs = [seen.data["pictures"][f"0-filters-s{side}"]["reels"][0]["high"] for side in (0, 1)]
        pages[name] = highs
    assert pages["shared"][0] == pages["shared"][1] == np.maximum(*pages["own"]).tolist()
    assert pages["own"][0] != pages["own"][1]


# --- TensorBoard


def pictures(folder: Path) -> tuple[dict[str, list[tuple[int, bytes]]], dict[str, list[tuple[int, float]]]]:
    """Tag -> steps and PNG files; tag -> steps and numbers, of the only event file there."""
    (file,) = folder.iterdir()
    images: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    numbers: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.HasField("image"):
                images[value.tag].append((event.step, value.image.encoded_image_string))
            else:
                numbers[value.tag].append((event.step, value.simple_value))
    return images, numbers


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


def test_the_tensorboard_run_holds_all_sides_and_steps(runs: tuple[Path, Path], tmp_path: Path) -> None:
    comparison = compare(*runs)
    tensorboard_run.write_board(comparison, tmp_path / "new" / "board")
    images, numbers = pictures(tmp_path / "new" / "board")
    layers = ("00_conv1", "01_conv2")
    kinds = ("compare_filters", "compare_feature_maps")
    assert set(images) == {f"{k}/{layer}/{s}" for k in kinds for layer in layers for s in ("A", "B", "B-A")}
    ends = ("function_distance", "weight_distance", "angle_between", "cka_between")
    between = (*ends, *(f"shown_{number}" for number in ends))
    assert set(numbers) == {f"compare_numbers/{k}/{layer}/B-A" for k in between for layer in layers}
    steps = [[step for step, _ in found] for found in images.values()]
    steps += [[step for step, _ in found] for tag, found in numbers.items() if "/shown_" in tag]
    assert all(found == [0, 1, 2, 3, 4] for found in steps)
    held = [pixels_of(png).tobytes() for _, png in images["compare_filters/00_conv1/A"]]
    assert held[3] == held[4] != held[2]
    conv1 = comparison.layer("conv1")
    change, limits = comparison.difference(conv1, "filters", 4), comparison.difference_limits(conv1, "filters", 4)
    assert change is not None
    assert limits is not None
    drawn = pixels_of(images["compare_filters/00_conv1/B-A"][4][1])
    np.testing.assert_array_equal(drawn, filters_grid(change, limits, view="rgb").pixels)
    for number in ("angle_between", "shown_angle_between"):
        curve = comparison.curves()[number]["conv1"]["fast"]
        steps_and_values = numbers[f"compare_numbers/{number}/00_conv1/B-A"]
        assert [step for step, _ in steps_and_values] == [step for step, _ in curve]
        assert [value for _, value in steps_and_values] == pytest.approx([value for _, value in curve], rel=1e-6)


def test_a_board_that_fails_half_way_leaves_nothing(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    comparison = compare(*runs)
    comparison.measure()
    with pytest.raises(KeyboardInterrupt):
        tensorboard_run.write_board(comparison, tmp_path / "new" / "board", progress=progress)
    assert not list(tmp_path.iterdir())


# --- weights


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    return load_classifier("squeezenet1_1").model


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)).save(path)
    return path


def test_a_run_and_the_checkpoints_of_any_network(tmp_path: Path) -> None:
    """Without an architecture: the checkpoint's names and 4-D weights are enough."""
    run = write_run(tmp_path / "run", moving(0, 0.1))
    filters, _ = moving(0, 0.1)(3)
    state = {f"model.{name}.weight": torch.from_numpy(np.array(array)) for name, array in filters.items()}
    torch.save({"state_dict": {**state, "model.fc.weight": torch.ones(2, 6)}, "epoch": 3}, tmp_path / "last.ckpt")
    comparison = compare(run, tmp_path / "last.ckpt")
    assert [layer.names for layer in comparison.layers] == [("conv1", "model.conv1"), ("conv2", "model.conv2")]
    assert "run and last.ckpt are matched without the prefix 'model.'" in comparison.notes
    assert [side.label for side in comparison.sides] == ["run", "last.ckpt"]
    for row in comparison.rows():
        assert row.weight_distance[0] == 0  # the run's last step is what was saved
        assert row.filter_angle[1] is None
        assert not row.shown_weights
    first = comparison.difference(comparison.layer("conv1"), "filters", 0)
    np.testing.assert_array_equal(first, filters["conv1"] - moving(0, 0.1)(0)[0]["conv1"])
    assert comparison.step_of(1, 3) is None
    assert comparison.limits(1, comparison.layer("conv1"), "filters", 2) is not None


def test_a_checkpoint_with_adapters_says_that_it_is_shown_without_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", moving(0, 0.1))
    filters = {name: torch.from_numpy(np.array(array)) for name, array in moving(0, 0.1)(3)[0].items()}
    wrapped = "model.base_model.model."
    adapters = {f"{wrapped}conv1.lora_{part}.default.weight": torch.ones(2, 2, 1, 1) for part in "AB"}
    state = {f"{wrapped}conv1.base_layer.weight": filters["conv1"], f"{wrapped}conv2.weight": filters["conv2"]}
    torch.save({"state_dict": {**state, **adapters}}, tmp_path / "lora.ckpt")
    comparison = compare(run, tmp_path / "lora.ckpt")
    assert [layer.names for layer in comparison.layers] == [("conv1", "model.conv1"), ("conv2", "model.conv2")]
    assert [row.weight_distance[0] for row in comparison.rows()] == [0, 0]
    (said,) = (note for note in comparison.notes if note.startswith("lora.ckpt: "))
    assert "the filters of model.conv1 are shown without the adapters of PEFT's" in said
    torch.save(adapters, tmp_path / "adapters.pt")  # what save_pretrained writes
    with pytest.raises(ValueError, match=r"adapters.pt: it holds adapters of PEFT's, without the filters"):
        compare(run, tmp_path / "adapters.pt")


def test_weights_make_feature_maps_of_an_image(tmp_path: Path, squeezenet: nn.Module, image: Path) -> None:
    state = squeezenet.state_dict()
    torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, tmp_path / "a.ckpt")
    moved = {k: v + 0.01 * torch.randn_like(v) if k.startswith("features.0.") else v for k, v in state.items()}
    safetensors.torch.save_file(moved, tmp_path / "b.safetensors")
    comparison = compare(tmp_path / "a.ckpt", tmp_path / "b.safetensors", image=image)
    assert comparison.steps == (0,)
    pictured = [layer for layer in comparison.layers if layer.has_filters]
    assert len(pictured) <= 8  # as the monitors would choose
    assert [layer for layer in comparison.layers if layer.has_maps] == pictured
    assert len(comparison.layers) == 26
    rows = {row.layer: row for row in comparison.rows()}
    assert (rows["features.0"].weight_distance[0] or 0) > 0
    assert [row.weight_distance[0] for name, row in rows.items() if name != "features.0"] == [0] * 25
    assert rows["classifier.1"].cka_between[0] is not None
    assert rows["classifier.1"].cka_between[0] < 1
    probe = Probe.from_images(image, transform=default_transform("squeezenet1_1"))
    held = capture(
        squeezenet, probe, filter_layers=(), map_layers=["features.0"], step=0, epoch=0, global_step=0
    ).feature_maps["features.0"]
    np.testing.assert_array_equal(comparison.sides[0].feature_maps["features.0"], held)
    shown = comparison.shown(0, comparison.layer("features.0"), "feature_maps", 0)
    assert shown is not None
    assert shown.shape[1] == 64
    assert rows["features.0"].dead_share == (None, None)  # what follows the layer is not known here
    assert comparison.verdict().startswith("features.0 changed most from a.ckpt to b.safetensors: its weights by")
    assert comparison.verdict().endswith("; 25 of 26 layers did not change at all.")


def test_a_checkpoint_tells_its_architecture_among_its_hyperparameters(
    tmp_path: Path, squeezenet: nn.Module, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"state_dict": squeezenet.state_dict(), "hyper_parameters": {"lr": 0.1, "arch": "squeezenet1_1"}}
    torch.save(held, tmp_path / "a.ckpt")
    asked: list[str | None] = []

    def noted(what: str, *, arch: str | None = None) -> Loaded:
        asked.append(arch)
        return load_classifier(what, arch=arch)

    monkeypatch.setattr("cnnlog.models.weights.load_classifier", noted)
    compare(tmp_path / "a.ckpt", tmp_path / "a.ckpt", image=image)
    assert asked == ["squeezenet1_1"] * 2


def test_weights_are_shown_as_the_run_they_are_compared_with(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", moving(0, 0.1), max_filters=2)
    filters, _ = moving(1, 0.2)(3)
    state = {f"{name}.weight": torch.from_numpy(np.array(array)) for name, array in filters.items()}
    torch.save(state, tmp_path / "other.pt")
    comparison = compare(tmp_path / "other.pt", run)
    for layer in comparison.layers:
        shown, other = (comparison.shown(side, layer, "filters", 3) for side in (0, 1))
        assert shown is not None
        assert other is not None
        assert shown.shape == other.shape
        assert comparison.view_of(0, layer) == comparison.view_of(1, layer)


# --- the example


def test_the_example_runs(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, runs), "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert compare(*runs).verdict() in out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["fast-minus-slow-conv1.png", "numbers.csv"]
