"""The command line, as a person types it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.stored_runs import write_run
from torch import nn
from typer.testing import CliRunner, Result

import cnnlog
from cnnlog.cli.app import app
from cnnlog.rendering.grids import maps_grid
from cnnlog.rendering.shared_ranges import tight_limits


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pt"
    torch.save(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)).save(path)
    return path


def test_it_says_its_version_and_what_it_can_do() -> None:
    assert run("--version").output == f"cnnlog {cnnlog.__version__}\n"
    text = run("--help").output
    assert "Watch a CNN's filters and feature maps change" in text
    assert all(command in text for command in ("layers", "show", "compare", "export", "replay", "tensorboard", "demo"))


def test_layers_of_alexnet() -> None:
    lines = run("layers", "alexnet").output.splitlines()
    assert "Total parameters: 61,100,840 (61,100,840 trainable)" in lines
    (first,) = [line for line in lines if "features.0 " in line]
    assert first.split() == ["*", "features.0", "Conv2d", "64x55x55", "23,296"]
    marked = [line.split()[1] for line in lines if line.startswith("*")]
    assert marked == ["features.0", "features.3", "features.6", "features.8", "features.10"]


def test_layers_of_a_checkpoint(weights: Path) -> None:
    text = run("layers", weights).output
    assert "classifier.1" in text
    assert "4x13x13" in text


def test_the_filters_averaged_over_inputs_and_scaled_over_the_layer(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "filters.png"
    options = ("--layer", "features.0", "--view", "mean", "--range", "layer", "-o", output)
    run("show", "filters", "squeezenet1_1", "--weights", weights, *options)
    with Image.open(output) as picture:
        assert picture.size == (345, 345)  # 8 x 8 cells of 3 pixels, 14 times enlarged, 9 gaps
        grid = np.asarray(picture.convert("RGB"))
    assert np.all(grid[..., 0] == grid[..., 1]) or np.count_nonzero(np.ptp(grid, axis=-1)) == 345**2 - 64 * 42**2
    means = torch.load(weights, weights_only=True)["features.0.weight"].mean(1).numpy()
    largest = np.abs(means).max()
    for index in (0, 9, 63):
        row, column = divmod(index, 8)
        top, left = 1 + row * 43, 1 + column * 43
        cell = grid[top : top + 42 : 14, left : left + 42 : 14, 0] / 255
        np.testing.assert_allclose(cell, (means[index] / largest + 1) / 2, atol=1 / 60)


def test_the_filters_in_colour(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "filters.png"
    run("show", "filters", weights, "--layer", "features.0", "-o", output)
    with Image.open(output) as picture:
        assert picture.mode == "RGB"


def test_the_maps_are_the_named_layers_own(tmp_path: Path, weights: Path, image: Path) -> None:
    output = tmp_path / "maps.png"
    options = ("--image", image, "--layer", "features.0", "--range", "layer", "--width", 2000, "--max", 4, "-o", output)
    run("show", "maps", "squeezenet1_1", "--weights", weights, *options)
    model = torchvision.models.squeezenet1_1(num_classes=4).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    transform = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    with torch.no_grad(), Image.open(image) as picture:
        expected = nn.functional.conv2d(
            transform(picture.convert("RGB"))[None], model.features[0].weight, model.features[0].bias, stride=2
        )[0, :4]
    limits = tight_limits(expected.numpy(), rule="layer")
    grid = maps_grid(expected.numpy(), limits, width=2000)
    with Image.open(output) as picture:
        difference = np.asarray(picture).astype(int) - grid.pixels
    assert np.abs(difference).max() <= 1  # one level of colour: the other way of computing rounds differently


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_figures(suffix: str, tmp_path: Path, weights: Path, image: Path) -> None:
    filters, maps = tmp_path / f"filters{suffix}", tmp_path / f"maps{suffix}"
    run("show", "filters", weights, "--layer", "features.0", "--figure", "--max", 9, "-o", filters)
    run("show", "maps", weights, "--image", image, "--layer", "features.0", "--figure", "--max", 9, "-o", maps)
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert filters.read_bytes().startswith(start)
    assert maps.read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("layers", "alexnett"), "no classifier 'alexnett'; did you mean alexnet"),
        (("layers", "missing.pt"), "file of weights at missing.pt, but there is none"),
        (("show", "filters", "W", "--layer", "feature.0", "-o", "a.png"), "no layer 'feature.0'.*features.0"),
        (("show", "filters", "W", "--layer", "features.1", "-o", "a.png"), "'features.1' .ReLU. has no filters"),
        (("show", "filters", "W", "--layer", "features.*", "-o", "a.png"), "takes one layer, but 'features.*' matches"),
        (("show", "filters", "W", "--layer", "features.0", "-o", "a.pdf"), "written as .png.*need --figure"),
        (("show", "filters", "W", "--layer", "features.0", "-o", "no/a.png"), "the folder of .* does not exist"),
        (
            ("show", "filters", "W", "--layer", "features.0", "--view", "mean", "--cmap", "gry", "-o", "a.png"),
            "got 'gry': did you mean",
        ),
        (("show", "filters", "W", "--layer", "classifier.1", "--view", "rgb", "-o", "a.png"), '"rgb" needs .* 3 input'),
        (
            ("show", "maps", "W", "--image", "no.jpg", "--layer", "features.0", "-o", "a.png"),
            "no probe image at 'no.jpg'",
        ),
        (("tensorboard", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], message: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        run(*(weights if argument == "W" else argument for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_one_sentence_with_exit_code_2() -> None:
    command = [str(Path(sys.executable).with_name("cnnlog")), "tensorboard", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cnnlog: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_demo_ends_with_the_runs_the_table_and_the_line_that_opens_tensorboard(tmp_path: Path) -> None:
    text = run("demo", "--quick", "--out", tmp_path / "runs").output
    assert str(tmp_path / "runs") in text
    assert "output on the probe" in text
    assert f"tensorboard --logdir {shlex.quote(str(tmp_path / 'runs'))}" in text


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", r"net.größe \u4e16\u754c"), ("utf-8", "net.größe 世界")],
    ids=["latin-1", "utf-8"],
)
def test_what_a_terminal_cannot_show_is_spelled_out(encoding: str, shown: str, tmp_path: Path) -> None:
    arrays = {"net.größe 世界": np.ones((4, 3, 3, 3), np.float32)}
    write_run(tmp_path / "run", lambda step: ({name: values * (step + 1) for name, values in arrays.items()}, {}))
    assert shown in typed("compare", tmp_path / "run", encoding=encoding)


@pytest.mark.parametrize("command", ["layers", "compare", "tensorboard", "export", "replay", "demo"])
def test_help_is_shown_by_a_narrow_terminal_without_an_encoding(command: str) -> None:
    """It is cut there, with a character that ASCII lacks."""
    assert "Usage: cnnlog" in typed(command, "--help", encoding="ascii")


def typed(*arguments: object, encoding: str) -> str:
    """What the command prints to a terminal of 40 columns, in an encoding of its own."""
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "COLUMNS": "40"}
    command = [str(Path(sys.executable).with_name("cnnlog")), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding=encoding, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_maps_of_an_image_as_tutorials_take_it(tmp_path: Path, weights: Path, image: Path) -> None:
    output = tmp_path / "maps.png"
    layer = ("--layer", "features.3.squeeze", "--range", "layer", "--max", 4, "--width", 900)
    how = ("--resize", "96x64", "--no-normalize")
    said = run(
        "show", "maps", "squeezenet1_1", "--weights", weights, "--image", image, *layer, *how, "-o", output
    ).output
    assert "features.3.squeeze: drawn is what the network computes there, as convolution 2 of 26" in said
    model = torchvision.models.squeezenet1_1(num_classes=4).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad(), Image.open(image) as picture:
        values = torchvision.transforms.functional.to_tensor(
            picture.convert("RGB").resize((64, 96), Image.Resampling.BILINEAR)
        )
        expected = model.features[3].squeeze(model.features[:3](values[None]))[0, :4].numpy()
    grid = maps_grid(expected, tight_limits(expected, rule="layer"), width=900)
    with Image.open(output) as picture:
        assert np.abs(np.asarray(picture).astype(int) - grid.pixels).max() <= 1
        facts = json.loads(picture.text["cnnlog"])
    np.testing.assert_allclose(facts["high"], np.abs(expected).max(), rtol=1e-5)


@pytest.mark.parametrize("size", ["0", "12x", "1x2x3", "big"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path, weights: Path, image: Path) -> None:
    options = ("--image", image, "--layer", "features.0", "--resize", size, "-o", tmp_path / "maps.png")
    done = CliRunner().invoke(app, [str(each) for each in ("show", "maps", weights, *options)])
    assert done.exit_code != 0
    assert f"such as 512 or 480x640 (height x width); got '{size}'" in " ".join(
        (done.output + str(done.exception)).split()
    )
