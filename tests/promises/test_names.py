"""Names that a file system, a table, a page or an address could trip over: shown as they are, and kept inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from support.pages import written
from support.training import TinyCNN, events, fit, image_steps, probe, trainer
from torch import nn

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.kinds import Kind
from cnnlog.reports.export import export
from cnnlog.reports.part import Wanted
from cnnlog.runs.finding import open_run
from cnnlog.runs.places import inside, locate, spelled
from cnnlog.runs.store import RunStore
from cnnlog.runs.table import Table

LAYERS = (
    "a/b/c",
    "/abs",
    "\\up/ up",
    "ünïcode 层 🙂",
    "x" * 300,
    "lay|er`s *[a-z]?",
    "</script><script>alert(1)</script>",
    "nul\0, two\nlines",
    "c:\\d%2e",
)


class Named(TinyCNN):
    """Its convolutions have the names given; torch itself refuses those with a dot."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for number, name in enumerate(names):
            self.net.add_module(name, nn.Conv2d(3 if number == 0 else 10, 10, 3, padding=1))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_names_of_layers(tmp_path: Path) -> None:
    root = tmp_path / "one" / "two" / "three"
    loggers = [TensorBoardLogger(root, name="run", version="v0"), CSVLogger(root, name="csv", version="v0")]
    callbacks = [FilterMonitor([f"net.{name}" for name in LAYERS]), FeatureMapMonitor(probe(), "net.*")]
    fit(trainer(root, callbacks, logger=loggers, max_epochs=1), Named(LAYERS))

    folder = root / "run" / "v0" / "cnnlog"
    assert all(name.startswith(("one/two/three/run/v0/", "one/two/three/csv/v0/")) for name in files(tmp_path))
    run = RunStore.open(str(folder))
    names = [f"net.{name}" for name in LAYERS]
    assert [layer.name for layer in run.manifest.layers] == names
    assert run.steps == [0, 1]
    record, weights = run.read_record(1), run.read_weights("latest")[0]
    assert record.filters.keys() == record.feature_maps.keys() == set(names) <= weights.keys()

    found = events(root / "run" / "v0")
    tags = [f"{number:02d}_{name}" for number, name in enumerate(names)]
    images = image_steps(found)
    for kind in ("filters", "feature_maps"):
        assert {tag: images[f"{kind}/{tag}"] for tag in tags} == {tag: [0, 1] for tag in tags}
        assert {tag: images[f"{kind}_change/{tag}"] for tag in tags} == {tag: [1] for tag in tags}
    assert all(f"numbers/weight_change/{tag}" in found.Tags()["scalars"] for tag in tags)
    table = found.Tensors("layers")[0].tensor_proto.string_val[0].decode()
    rows = [line for line in table.splitlines() if line.startswith("| watched |")]
    assert len(rows) == len(LAYERS)
    assert "| `net.ünïcode 层 🙂` |" in table
    assert "| `` net.lay\\|er`s *[a-z]? `` |" in table

    pictures = {path for path in files(folder / "pictures") if path.startswith("filters/")}
    assert len(pictures) == 2 * len(LAYERS), "each has a folder of its own"
    assert max(len(part.encode()) for path in pictures for part in path.split("/")) <= 120
    assert f"filters/{spelled('03_net.ünïcode 层 🙂')}/step-00000001.png" in pictures

    _, page = written(cnnlog.compare(folder), tmp_path / "page.html")
    assert page.wrong == []
    assert [layer["name"] for layer in page.data["layers"]] == [*names, "head"]
    shown = [name for name in names if "\n" not in name and "\0" not in name]  # HTML has no NUL, and folds white space
    assert all(name in page.text for name in shown)
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (made,) = export(open_run(folder), ["strip"], Wanted(layer=name, kind=Kind.FILTERS), out)
        assert made.path.parent == out
        assert made.path.exists()
    assert len(files(out)) == len(LAYERS)


RUNS = ("ünïcode 层 🙂", "a/b", "model::v1", "lr=[0.1]*", "n" * 200, "..two", "c:d")


@pytest.mark.parametrize("name", RUNS)
def test_names_of_runs(name: str, tmp_path: Path) -> None:
    """Lightning makes the folder; ours is in it, and a resume finds there what was drawn."""
    if spelled(name) != name:
        pytest.skip("names of files cannot hold this one in the locale, and Lightning does not make the folder")
    root = tmp_path / "one" / "two"
    saves = ModelCheckpoint(tmp_path / "checkpoints", "{epoch}", save_top_k=-1)
    checkpoint = None
    for epochs in (1, 2):
        logger = TensorBoardLogger(root, name=name, version=f"{name}-v0" if len(name) < 99 else name)
        callbacks = [FilterMonitor(), FeatureMapMonitor(probe()), saves]
        run = trainer(root, callbacks, max_epochs=epochs, logger=logger, enable_checkpointing=True)
        fit(run, TinyCNN(), ckpt_path=checkpoint)
        checkpoint = tmp_path / "checkpoints" / f"epoch={epochs - 1}.ckpt"
    where = Path(logger.log_dir)
    ours = {path for path in files(tmp_path) if not path.startswith("checkpoints/")}
    assert all((tmp_path / path).is_relative_to(where) for path in ours)
    assert RunStore.open(str(where / "cnnlog")).steps == [0, 1, 2]
    assert image_steps(events(where))["filters/00_net.0"] == [0, 1, 2]
    assert open_run(where).steps == (0, 1, 2)


class Tracker(Logger):
    """A tracker without a folder of its own: its runs share `save_dir`, and project and run are free texts."""

    def __init__(self, save_dir: Path, name: str, version: str) -> None:
        super().__init__()
        self._save_dir, self._name, self._version = str(save_dir), name, version

    save_dir = property(lambda self: self._save_dir)
    name = property(lambda self: self._name)
    version = property(lambda self: self._version)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("project", "run", "folder"),
    [
        ("../..", "../up", "%2e%2e/%2e%2e/%2e%2e/up"),
        ("/etc", "a:b", "/etc/a%3ab"),
        ("p" * 300, "层", None),
        ("team/project", "v1", "team/project/v1"),
    ],
)
@pytest.mark.filterwarnings("ignore:cnnlog. Tracker is given no pictures")
def test_names_that_a_tracker_takes(project: str, run: str, folder: str | None, tmp_path: Path) -> None:
    root = tmp_path / "one" / "two"
    fit(trainer(root, [FilterMonitor()], logger=Tracker(root, project, run), max_epochs=1), TinyCNN())
    assert all(path.startswith("one/two/") for path in files(tmp_path))
    (manifest,) = root.rglob("manifest.json")
    assert folder is None or manifest == Path(f"{root}/{folder}/cnnlog/manifest.json")
    assert RunStore.open(str(manifest.parent)).steps == [0, 1]


@pytest.mark.parametrize("name", ["..", "a/../b", "../../etc", "/etc", "...", "a\\..\\b", "..\n", "x" * 999, ""])
def test_a_name_stays_inside(name: str, tmp_path: Path) -> None:
    made = inside(name)
    assert (tmp_path / "run" / made.lstrip("/")).resolve().is_relative_to(tmp_path / "run")
    assert ".." not in made.split("/")
    assert max(len(part) for part in made.split("/")) <= 120


@pytest.mark.parametrize(("locale", "made"), [("UTF-8", "grün/層"), ("C", "gr%C3%BCn/%E5%B1%A4")])
def test_a_name_that_the_locale_has_no_bytes_for_is_spelled_out(locale: str, made: str) -> None:
    """Asked of another process, for Python learns the encoding of names as it starts."""
    ascii_or_not = {"PYTHONUTF8": "0", "LC_ALL": "C"} if locale == "C" else {"PYTHONUTF8": "1"}
    code = r"from cnnlog.runs.places import inside; print(ascii(inside('gr\xfcn/\u5c64')))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env={**os.environ, **ascii_or_not}, capture_output=True, check=True).stdout
    assert said.decode().strip() == ascii(made)


def test_only_an_address_is_taken_for_one() -> None:
    assert locate("memory://run/cnnlog")[0].protocol == "memory"
    for path in ("/runs/a::b", "/runs/s3://x", "/runs/memory://x/cnnlog"):
        fs, bare = locate(path)
        assert "file" in fs.protocol
        assert bare == path
    assert locate("file:///runs/v0")[1] == "/runs/v0"


def test_a_table_with_a_nul_is_csv_also_in_python_3_10() -> None:
    assert Table(("layer", "drift"), (("a\0b", 0.5),)).to_csv() == "layer,drift\na\N{SYMBOL FOR NULL}b,0.5\n"
