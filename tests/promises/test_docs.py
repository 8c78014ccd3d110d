"""The pages say what is true: their code runs, their links lead somewhere, and what they list is what there is."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import locale
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.documents import FOR_CONTRIBUTORS, PAGES, README, Block, blocks, blocks_of, prose
from support.places import ROOT
from support.training import TinyCNN, events, fit, image_steps, loader, probe, trainer
from typer.main import get_command
from typer.testing import CliRunner

import cnnlog
import cnnlog.models
from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.cli.app import app

EVERY = [*PAGES, README, *FOR_CONTRIBUTORS]
WITH_PYTHON = [page for page in PAGES if any(block.treatment == "run" for block in blocks(page))]
# Commands that are quick where a run is there, and need no network
QUICK = {"compare", "export", "layers"}
SENT_ELSEWHERE = re.compile(r"\b(see `|as for `?[A-Z]|as for the\b|likewise\b)")


def the(info: str) -> Block:
    """The one block of its kind on all pages."""
    (block,) = [block for page in PAGES for block in blocks(page) if block.info == info]
    return block


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the two images that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("shark.jpg", "ray.jpg"):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of a training that was watched."""
    folder = tmp_path_factory.mktemp("stored")
    fit(trainer(folder, [FilterMonitor(), FeatureMapMonitor(probe())], max_epochs=2), TinyCNN())
    return folder / "run" / "v0"


@pytest.fixture
def runs(folder: Path, stored: Path) -> Path:
    """The folder of the images, with the runs that the pages speak of."""
    for name in ("lightning_logs/version_0", "finetuned", "scratch"):
        shutil.copytree(stored, folder / name)
    return folder


# --- code


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_each_block_is_run_or_is_said_to_be_an_excerpt(page: Path) -> None:
    for block in blocks(page):
        if block.treatment == "excerpt":
            ast.parse(block.text)


def test_a_block_that_is_neither_is_found() -> None:
    for info in ("", "python skipped", "bash"):
        (block,) = blocks_of(f"text\n\n```{info}\nx = 1\n```\n", "page.md")
        with pytest.raises(ValueError, match=r"page\.md, line 3: a block begins with one of"):
            _ = block.treatment
    with pytest.raises(ValueError, match="does not end"):
        blocks_of("```python\nx = 1\n", "page.md")


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_a_line_of_code_fits_the_page(page: Path) -> None:
    for block in blocks(page):
        assert all(len(line) <= 90 for line in block.text.splitlines()), f"{page.name}, block of line {block.line}"


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, folder: Path, stored: Path) -> None:
    known: dict[str, Any] = {
        "weights": SimpleNamespace(transforms=lambda: _small),
        "model": TinyCNN(),
        "train_loader": loader(),
        "val_loader": loader(),
    }
    if page.stem in ("after-training", "numbers"):
        shutil.copytree(stored, folder / "lightning_logs" / "version_0")
    for block in blocks(page):
        if block.treatment == "run":
            exec(compile("\n" * block.line + block.text, block.page, "exec"), known)
    steps = {"getting-started": range(11), "recipes": (0, 2, 4), "after-training": range(3), "numbers": range(3)}
    assert cnnlog.open_run(folder).steps == tuple(steps[page.stem])


def _small(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1) / 255


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ignite's imports
@pytest.mark.parametrize("kind", ["loop", "fabric", "ignite"])
def test_the_recipes_without_lightnings_trainer_run(kind: str, folder: Path) -> None:
    if kind == "ignite":
        pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    trained = []
    block = the(f"python {kind}")
    without = "\n".join(line for line in block.text.splitlines() if "watcher.snapshot" not in line)
    without = without.replace("runs/", "unwatched/")
    for text in (block.text, without):
        torch.manual_seed(0)
        model = TinyCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        known = {"model": model, "optimizer": optimizer, "probe": probe(), "train_loader": loader()}
        exec(compile(text, block.page, "exec"), {**known, "torch": torch, "cnnlog": cnnlog, "lightning": L})
        trained.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*trained, strict=True))
    (path,) = folder.rglob("manifest.json")
    assert not [path for path in (folder / "unwatched").rglob("*") if path.is_file()]
    run = cnnlog.open_run(path.parent)
    assert path.parent.parent.parent.name == "runs"
    assert run.steps == (0, 1, 2, 3)
    assert run.layers == ("net.0", "net.3")
    assert run.numbers("weight_change", "net.0", 3)[0] > 0
    assert image_steps(events(path.parent.parent))["feature_maps/01_net.3"] == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's use of jsonargparse
@pytest.mark.filterwarnings("ignore:cnnlog. the probe is not what the network is trained on")  # it has 224 px, these 16
def test_the_yaml_configures_a_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    with contextlib.suppress(UnicodeDecodeError):
        (folder / "shark.jpg").read_text(encoding=locale.getpreferredencoding(False))
        pytest.skip("jsonargparse reads an image as a list of paths where the locale makes a text of any bytes")
    config = yaml.safe_load(the("yaml").text)
    config["trainer"] |= {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    class Loaded(TinyCNN):
        def train_dataloader(self) -> Any:
            return loader()

    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
    LightningCLI(Loaded, save_config_callback=None, seed_everything_default=1)
    run = cnnlog.open_run(folder / "cnnlog_logs" / "version_0" / "cnnlog")
    assert run.steps == (0, 2)
    assert run.probe().shape == (1, 3, 224, 224)


# --- commands


def commands() -> list[tuple[str, list[str]]]:
    shell = [block for page in EVERY for block in blocks(page) if block.info == "sh"]
    return [(block.page, words) for block in shell for words in block.commands]


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_exists_and_takes_its_arguments(page: str, words: list[str], runs: Path) -> None:
    program, *arguments = words
    if program == "cnnlog":
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(words[1], list(arguments))  # raises on an unknown option or a missing one
        if words[1] in QUICK:
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, result.output
    elif program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
    elif program in ("python", ".venv/bin/python"):
        script = (ROOT / arguments[0]).read_text(encoding="utf-8")
        unknown = [word for word in arguments if word.startswith("--") and f'"{word}"' not in script]
        assert not unknown or "LightningCLI" in script
    else:
        assert words[:2] in (["pip", "install"], ["tensorboard", "--logdir"])


def test_the_options_in_the_text_exist() -> None:
    known = set(_options(get_command(app))) | {"--help"}
    elsewhere = {
        "--samples_per_plugin",
        "--cnnlog_keep_all_images",
        "--serve",
        "--all",
        "--lowest",
        "--trackio",
        "--memory",
        "--compare",
        "--page",
        "--family",
    }  # scripts
    elsewhere |= {"--weights", "--lr", "--warmup", "--epochs"}  # of examples/finetune.py
    for page in EVERY:
        text = page.read_text(encoding="utf-8")
        for code in re.findall(r"`([^`\n]+)`", text):
            for option in re.findall(r"(?<![\w-])--[\w-]+", code):
                assert option in known | elsewhere, f"{page.name}: {option}"


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from _options(inner)


def test_every_command_has_its_place() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\{command-help\} (.+)", text)) == sorted(_names(get_command(app)))
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == re.findall(r"\{command-help\} (.+)", text)


def _names(command: Any, *above: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(above)
    for name, one in (inner or {}).items():
        yield from _names(one, *above, name)


# --- what the pages list


def test_the_list_of_tags_is_what_a_run_logs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([^`]+)` \|", text.split("## Cells")[0], re.MULTILINE))
    callbacks: list[L.Callback] = [FilterMonitor(histograms=True), FeatureMapMonitor(probe(), histograms=True)]
    fit(trainer(tmp_path, callbacks, max_epochs=1), TinyCNN())
    tags = events(tmp_path / "run" / "v0").Tags()
    logged = {tag for kind in ("images", "scalars", "tensors") for tag in tags[kind]}
    mine = {tag for tag in logged if tag not in ("loss", "epoch") and "01_net.3" not in tag and "02_head" not in tag}
    assert {tag.replace("00_net.0", "00_conv1") for tag in mine} == listed


def test_the_list_of_files_is_what_a_run_leaves(stored: Path) -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = text.split("## The files of a run")[1].split("\n## ")[0]
    rows = re.findall(r"^\|(.*?)\|", section, re.MULTILINE)
    listed = {file for row in rows for file in re.findall(r"`([^`]+)`", row)}
    left = {re.sub(r"\d{8}", "00000000", path.name) for path in (stored / "cnnlog").iterdir()}
    assert left == {name for name in listed if "/" not in name}


def test_the_reference_has_every_public_name_and_what_it_returns() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = re.findall(r"auto(?:class|function):: ([\w.]+)", text)
    for name in named:
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last).__doc__, name
    public = {f"cnnlog.{name}" for name in cnnlog.__all__ if name != "__version__"}
    public |= {f"cnnlog.models.{name}" for name in cnnlog.models.__all__}
    assert public <= set(named)
    assert {"Watcher", "Run", "Comparison"} <= {name.rpartition(".")[2] for name in named}


def public() -> dict[str, Any]:
    """The public functions and classes, what they return, and the methods of these that a user calls."""
    named = re.findall(r"auto(?:class|function):: ([\w.]+)", (ROOT / "docs" / "reference.md").read_text())
    found: dict[str, Any] = {}
    for name in named[: named.index(next(name for name in named if name.endswith(".Loaded"))) + 1]:
        module, _, last = name.rpartition(".")
        found[last] = getattr(importlib.import_module(module), last)
        if isinstance(found[last], type) and not issubclass(found[last], L.Callback):
            members = {member: getattr(found[last], member) for member in vars(found[last]) if member[0] != "_"}
            found |= {f"{last}.{member}": thing for member, thing in members.items() if callable(thing)}
    return found


@pytest.mark.parametrize(("name", "thing"), public().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_explains_each_argument_where_it_stands(name: str, thing: Any) -> None:
    text = inspect.getdoc(thing) or ""
    made_elsewhere = name in ("Watcher", "Run", "Comparison", "Loaded")  # nobody calls these
    arguments = [] if made_elsewhere else [one for one in inspect.signature(thing).parameters if one != "self"]
    section = re.split(r"\n(?=\S)", text.partition("Args:\n")[2])[0]
    explained = re.findall(r"^    (\w+): ", section, re.MULTILINE)
    assert explained == arguments
    assert not SENT_ELSEWHERE.search(text)


def test_an_argument_that_is_explained_elsewhere_is_found() -> None:
    for text in ("    view: see `max_filters`.", "    cmap: as for the monitors.", "    std: per channel, likewise."):
        assert SENT_ELSEWHERE.search(text)


# --- links and prose


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue  # no test needs the network
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(there), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_the_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])((?:examples|scripts|tests)/[\w./]*\w)", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for name in re.findall(r"\btest_\w+\.py\b", text):
        assert name in tests, f"{page.name}: {name}"


def test_every_page_can_be_reached() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.stem != "index":
            assert re.search(rf"^{page.stem}$", index, re.MULTILINE), f"{page.name} is in no table of contents"


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.stem)
def test_a_line_holds_one_sentence(page: Path) -> None:
    for number, line in prose(page.read_text(encoding="utf-8")):
        assert not re.search(r"[a-z)][.!?] [A-Z]", line), f"{page.name}, line {number}"
