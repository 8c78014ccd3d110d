"""Imports point down, heavy packages stay where they belong, and `import cnnlog` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cnnlog"

# module -> what it may import of ours, anywhere in its text
MAY_IMPORT: dict[str, set[str]] = {
    "snapshot": set(),
    "background": set(),
    "rng": set(),
    "sharding": set(),
    "ranks": set(),
    "layers": set(),
    "drift": set(),
    "plugin": set(),
    "serve": set(),
    "render": {"snapshot"},
    "figures": {"snapshot", "render"},
    "places": set(),
    "store": {"snapshot", "places"},
    "probe": {"rng"},
    "sinks": set(),
    "sinks.tensorboard": {"places"},
    "sinks.wandb": {"places"},
    "sinks.mlflow": {"places"},
    "sinks.comet": set(),
    "sinks.aim": set(),
    "sinks.clearml": set(),
    "sinks.pictures": {"places"},
    "sinks.other": set(),
    "host": {"snapshot", "sharding"},
    "effective": {"snapshot", "host", "sharding"},
    "loan": {"effective", "layers", "rng", "sharding"},
    "capture": {"snapshot", "effective", "host", "layers", "loan", "probe", "sharding"},
    "table": {"capture", "layers", "loan"},
    "models": set(),
    "tabular": set(),
    "run": {"snapshot", "places", "store", "render", "figures", "tabular"},
    "weights": {"snapshot", "layers", "probe", "capture", "models", "run"},
    "sides": {"snapshot", "render", "run", "weights"},
    "summary": {"tabular", "run"},
    "comparison": {"snapshot", "store", "drift", "render", "figures", "tabular", "run", "sides", "summary"},
    "files": set(),
    "board": {"snapshot", "render", "sinks", "sinks.tensorboard", "run", "summary", "comparison"},
    "charts": set(),
    "frames": {"snapshot", "render"},
    "lives": {"comparison"},
    "film": {"snapshot", "render", "run", "comparison", "frames", "lives"},
    "page_about": {"comparison"},
    "page_numbers": {"run", "comparison", "charts", "lives", "film"},
    "page_layers": {"render", "run", "comparison", "frames", "film", "page_about", "page_numbers"},
    "page_data": {"render", "comparison", "film", "page_about", "page_layers", "page_numbers"},
    "report": {"run", "comparison", "files", "film", "page_about", "page_layers", "page_numbers", "page_data"},
    "canvas": set(),
    "animated": {"render"},
    "export": {"snapshot", "store", "drift", "render", "figures", "run", "canvas", "animated", "files", "places"},
    "drawer": {"snapshot", "render", "store"},
    "recorder": {"snapshot", "render", "drift", "store", "sinks", "background", "drawer"},
    "plan": {"snapshot", "drawer", "layers", "probe", "render", "store"},
    "alarm": {"ranks", "recorder"},
    "eventfile": set(),
    "session": {
        *("alarm", "capture", "host", "layers", "probe", "ranks", "sharding"),
        *("table", "places", "plan", "recorder", "sinks", "store"),
    },
    "callbacks": {"drawer", "probe", "render", "plan", "session"},
    "checkpoints": {"models", "plan", "store"},
    "replay": {
        *("models", "capture", "drawer", "layers", "probe", "table", "plan", "recorder", "store", "run"),
        *("checkpoints", "sinks", "sinks.tensorboard", "eventfile"),
    },
    "watcher": {
        *("alarm", "capture", "layers", "probe", "table", "plan", "recorder", "store", "render"),
        *("drawer", "ranks", "sharding"),
        *("sinks", "sinks.tensorboard", "eventfile"),
    },
    "demo": {"callbacks", "probe", "drift", "store", "snapshot"},
}
# the small file of each tracker, imported when its logger is there
MAY_IMPORT["sinks"] = {name for name in MAY_IMPORT if name.startswith("sinks.")}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"plugin", "callbacks", "watcher"}  # entry points never import one another
MAY_IMPORT["__init__"] = {"callbacks", "probe", "comparison", "run", "watcher"}

WITHOUT_TORCH = (
    "snapshot",
    "background",
    "render",
    "figures",
    "drift",
    "store",
    "tabular",
    "run",
    "sides",
    "summary",
    "comparison",
    "charts",
    "frames",
    "report",
    "export",
    "drawer",
    "recorder",
    "serve",
    "plugin",
    "sinks",
    "cli",
)


def modules() -> dict[str, Path]:
    paths = [path for path in PACKAGE.rglob("*.py") if "templates" not in path.parts]
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, at any depth of its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = modules()
    ours = {name.removeprefix("cnnlog.") for name in found if name.startswith("cnnlog.")}
    return {next((part for part in (name, name.rpartition(".")[0]) if part in known), "__init__") for name in ours}


def test_the_table_lists_every_module() -> None:
    assert set(modules()) == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_only_point_down(name: str) -> None:
    assert imports(modules()[name]) - {"__init__"} <= MAY_IMPORT[name]


def test_the_table_has_no_circle() -> None:
    left = {name: set(targets) - {name} for name, targets in MAY_IMPORT.items() if name != "__init__"}
    left["sinks"] = set()
    while left:
        free = {name for name, targets in left.items() if not targets & left.keys()}
        assert free, f"these import one another: {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in free}


def loaded(statement: str) -> set[str]:
    """The top-level packages in memory after a statement, in a process of its own."""
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_readers_use_loads_no_torch(name: str) -> None:
    assert not loaded(f"import cnnlog.{name}") & {"torch", "lightning", "torchvision"}


def test_importing_cnnlog_loads_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "numpy", "matplotlib", "PIL", "tensorboard", "typer"}
    assert not loaded("import cnnlog") & heavy


def test_the_test_of_lightness_can_fail() -> None:
    assert "torch" in loaded("from cnnlog import Probe")
    assert "lightning" in loaded("from cnnlog import FilterMonitor")


def test_an_unknown_public_name_is_refused_with_the_known_ones() -> None:
    import cnnlog

    with pytest.raises(AttributeError, match="FeatureMapMonitor, FilterMonitor, Probe"):
        cnnlog.FilterMonitro  # noqa: B018
