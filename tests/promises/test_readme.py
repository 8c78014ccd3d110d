"""README says what is true: its Python and YAML run, its list of tags is what a run logs, its files exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.places import ROOT
from support.training import TinyCNN, events, fit, image_steps, loader, probe, trainer

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.runs.store import RunStore

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    every = re.findall(r"^```([\w ]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in every if kind == language]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the two images that README speaks of."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("shark.jpg", "ray.jpg"):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_the_python_blocks_run(folder: Path) -> None:
    def transforms() -> Any:
        return lambda image: torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1) / 255

    known = {
        "weights": SimpleNamespace(transforms=transforms),
        "model": TinyCNN(),
        "train_loader": loader(),
        "val_loader": loader(),
    }
    assert len(blocks("python")) == 5
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), known)
    first, second = (RunStore.open(str(path.parent)) for path in sorted(folder.rglob("manifest.json")))
    assert first.steps == list(range(11))
    assert second.steps == [0, 2, 4]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ignite's imports
@pytest.mark.parametrize("kind", ["loop", "fabric", "ignite"])
def test_the_recipes_without_lightnings_trainer_run(kind: str, folder: Path) -> None:
    if kind == "ignite":
        pytest.importorskip("ignite", reason="pytorch-ignite is not installed, and no dependency")
    trained = []
    (block,) = blocks(f"python {kind}")
    without = "\n".join(line for line in block.splitlines() if "watcher.snapshot" not in line)
    without = without.replace("runs/", "unwatched/")
    for text in (block, without):
        torch.manual_seed(0)
        model = TinyCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        known = {"model": model, "optimizer": optimizer, "probe": probe(), "train_loader": loader()}
        exec(compile(text, "README.md", "exec"), {**known, "torch": torch, "cnnlog": cnnlog, "lightning": L})
        trained.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*trained, strict=True))
    (path,) = folder.rglob("manifest.json")
    assert not [path for path in (folder / "unwatched").rglob("*") if path.is_file()]
    run = RunStore.open(str(path.parent))
    assert path.parent.parent.parent.name == "runs"
    assert run.steps == [0, 1, 2, 3]
    assert [layer.name for layer in run.manifest.layers] == ["net.0", "net.3"]
    assert run.read_record(3).numbers["filter_drift_l2"]["net.0"].min() > 0
    assert image_steps(events(path.parent.parent))["feature_maps/01_net.3"] == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's use of jsonargparse
def test_the_yaml_block_configures_a_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    (block,) = blocks("yaml")
    config = yaml.safe_load(block)
    config["trainer"] |= {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))

    class Loaded(TinyCNN):
        def train_dataloader(self) -> Any:
            return loader()

    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
    LightningCLI(Loaded, save_config_callback=None, seed_everything_default=1)
    run = RunStore.open(str(folder / "cnnlog_logs" / "version_0" / "cnnlog"))
    assert run.steps == [0, 2]
    assert run.read_probe().shape == (1, 3, 224, 224)


def test_the_list_of_tags_is_what_a_run_logs(tmp_path: Path) -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE))
    callbacks: list[L.Callback] = [FilterMonitor(histograms=True), FeatureMapMonitor(probe(), histograms=True)]
    fit(trainer(tmp_path, callbacks, max_epochs=1), TinyCNN())
    tags = events(tmp_path / "run" / "v0").Tags()
    logged = {tag for kind in ("images", "scalars", "tensors") for tag in tags[kind]}
    mine = {tag for tag in logged if tag not in ("loss", "epoch") and "01_net.3" not in tag}
    assert {tag.replace("00_net.0", "00_conv1") for tag in mine} == listed


def test_the_files_it_names_exist() -> None:
    for name in re.findall(r"(?:\]\(|`|^)((?:examples|scripts|tests)/[\w./]+)", README, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_commands_it_shows_parse() -> None:
    from typer.main import get_command

    from cnnlog.cli.app import app

    commands = [line.split("#")[0].split() for block in blocks("") for line in block.splitlines() if "cnnlog " in line]
    commands = [words for words in commands if words[:1] == ["cnnlog"]]
    assert len(commands) == 8
    for words in commands:
        command: Any = get_command(app)
        arguments = words[1:]
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(words[1], list(arguments))  # raises on an unknown option or a missing one
