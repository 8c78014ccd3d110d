"""The house: a wing imports only from the wings below it, torch stays in its wings, and `import cnnlog` is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cnnlog"

# From the top floor down: a wing imports from itself and from the floors below its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("demo",),
    ("tensorboard",),
    ("monitors", "reports"),
    ("recording", "comparison"),
    ("trackers", "models"),
    ("runs",),
    ("capture", "rendering"),
    ("metrics",),
    ("ground",),
)
GROUND = {"snapshot", "kinds", "messages"}
DOORS = {
    "": "everything, when a public name is first used",
    "plugin": "tensorboard, for installed entry points name it",
}

WITH_TORCH = {"capture", "models", "monitors", "demo"}
# Modules without torch that import one with torch inside a function, when it is needed.
LAZY = {
    ("comparison.sides", "models.weights"): "a side may be a file of weights",
    ("cli", "*"): "a command imports what it runs",
}


def wing_of(module: str) -> str:
    """The wing that a module, named without `cnnlog.`, lies in."""
    return "ground" if module in GROUND else module.partition(".")[0]


class House:
    """A package's modules, and what each imports of the others."""

    def __init__(self, package: Path) -> None:
        self.paths = {
            ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
            for path in package.rglob("*.py")
        }
        self.imports = {module: self._imports(path) for module, path in self.paths.items()}

    def _imports(self, path: Path) -> set[tuple[str, str]]:
        """The modules of ours that a file imports: at once, when asked (inside a function), or for types alone."""
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [outer for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef)]
        asked = {id(node) for outer in functions for node in ast.walk(outer)}
        typed = under_type_checking(tree)
        found = set()
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name} has a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("cnnlog."):
                    how = "for types" if id(node) in typed else "when asked" if id(node) in asked else "at once"
                    found.add((self._module(name.removeprefix("cnnlog.")), how))
        return found

    def _module(self, name: str) -> str:
        return next((part for part in (name, name.rpartition(".")[0]) if part in self.paths), "")

    def upward(self) -> list[str]:
        """The imports that no floor allows."""
        floor = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
        return [
            f"{module} imports {other}"
            for module, others in sorted(self.imports.items())
            if module not in DOORS
            for other, _ in sorted(others)
            if other and wing_of(other) != wing_of(module) and floor[wing_of(other)] <= floor[wing_of(module)]
        ]

    def circles(self) -> list[str]:
        """Modules that import one another."""
        left = {module: {other for other, _ in others} - {module, ""} for module, others in self.imports.items()}
        while free := [module for module, others in left.items() if not others & left.keys()]:
            left = {module: others for module, others in left.items() if module not in free}
        return sorted(left)

    def reaching_torch(self) -> list[str]:
        """Modules outside the wings of torch that import torch or lightning, or a module that does, unasked."""
        found = []
        for module, path in sorted(self.paths.items()):
            if module in DOORS or wing_of(module) in WITH_TORCH:
                continue
            found += [f"{module} imports {name}" for name in foreign(path) & {"torch", "lightning", "torchvision"}]
            for other, how in sorted(self.imports[module]):
                lazy = how == "when asked" and {(module, other), (wing_of(module), "*")} & LAZY.keys()
                if other and wing_of(other) in WITH_TORCH and how != "for types" and not lazy:
                    found.append(f"{module} imports {other}")
        return found


def under_type_checking(tree: ast.AST) -> set[int]:
    """The ids of all nodes under `if TYPE_CHECKING:`, which never run."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {id(node) for block in blocks for node in ast.walk(block)}


def foreign(path: Path) -> set[str]:
    """The packages of others that a file imports, but for the names of types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = under_type_checking(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in typed:
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in typed:
            found.add((node.module or "").partition(".")[0])
    return found


HOUSE = House(PACKAGE)


def test_every_module_lies_in_a_wing() -> None:
    wings = {wing for wings in FLOORS for wing in wings}
    assert {wing_of(module) for module in HOUSE.paths if module not in DOORS} == wings
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} <= GROUND | {"plugin"}


def test_a_wing_imports_only_from_those_below() -> None:
    assert HOUSE.upward() == []


def test_no_modules_import_one_another() -> None:
    assert HOUSE.circles() == []


def test_only_four_wings_reach_torch() -> None:
    assert HOUSE.reaching_torch() == []


def test_a_wing_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"runs/store.py": "from cnnlog.recording.recorder import Recorder"},
            ("runs.store imports recording.recorder", "upward"),
        ),
        (
            {"metrics/drift.py": "def f():\n    from cnnlog.runs import run"},
            ("metrics.drift imports runs.run", "upward"),
        ),
        ({"rendering/png.py": "from cnnlog.capture import probe"}, ("rendering.png imports capture.probe", "upward")),
        ({"snapshot.py": "import cnnlog.metrics.drift"}, ("snapshot imports metrics.drift", "upward")),
        ({"runs/store.py": "def f():\n    import torch"}, ("runs.store imports torch", "reaching_torch")),
        (
            {"reports/export.py": "from cnnlog.models.weights import W"},
            ("reports.export imports models.weights", "reaching_torch"),
        ),
        (
            {"comparison/sides.py": "from cnnlog.models.weights import W"},
            ("comparison.sides imports models.weights", "reaching_torch"),
        ),
        ({"runs/a.py": "from cnnlog.runs.b import x", "runs/b.py": "from cnnlog.runs import a"}, ("runs.a", "circles")),
    ],
)
def test_what_breaks_the_rules_is_found(tmp_path: Path, files: dict[str, str], said: tuple[str, str]) -> None:
    known = {
        "recording/recorder.py": "",
        "runs/run.py": "",
        "capture/probe.py": "",
        "metrics/drift.py": "",
        "models/weights.py": "",
    }
    for name, text in {**known, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert said[0] in getattr(House(tmp_path), said[1])()


# --- the size of the rooms


@dataclass(frozen=True)
class Piece:
    """A module, a class or a function, and its lines; without a function's signature, and without docstrings."""

    name: str
    kind: str
    lines: int


def pieces(module: str, path: Path) -> list[Piece]:
    """All that a file holds, and the file itself."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    holders = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = [holder.body[0] for holder in holders if ast.get_docstring(holder) is not None]
    words = {line for doc in docs for line in range(doc.lineno, (doc.end_lineno or 0) + 1)}
    found = [Piece(module, "module", len(text.splitlines()) - len(words))]
    for holder in holders:
        if not isinstance(holder, ast.Module):
            first = holder.lineno if isinstance(holder, ast.ClassDef) else holder.body[0].lineno
            lines = set(range(first, (holder.end_lineno or 0) + 1)) - words
            kind = "class" if isinstance(holder, ast.ClassDef) else "function"
            found.append(Piece(f"{module}.{holder.name}", kind, len(lines)))
    return found


PIECES = [piece for module, path in HOUSE.paths.items() for piece in pieces(module, path)]


def past(lines: int, kind: str, of: list[Piece]) -> list[str]:
    return sorted(piece.name for piece in of if piece.kind == kind and piece.lines > lines)


def test_few_modules_are_long_and_no_function_is() -> None:
    assert len(past(300, "module", PIECES)) <= 8
    assert past(60, "function", PIECES) == []
    assert past(250, "class", PIECES) == []
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_the_measure_of_size_can_fail(tmp_path: Path) -> None:
    body = "\n".join(f"    x{number} = {number}" for number in range(61))
    long = f'def long(\n    a: int,\n) -> None:\n    """Words\n\n    and words."""\n{body}\n'
    (tmp_path / "a.py").write_text(long, encoding="utf-8")
    found = pieces("a", tmp_path / "a.py")
    assert past(60, "function", found) == ["a.long"]
    assert past(61, "function", found) == []
    assert past(63, "module", found) == ["a"]


def test_a_kind_is_asked_and_seldom_compared() -> None:
    compared = re.compile(r"(?:==|!=|\bis\b|\bis not\b) (?:Kind\.|[\"'](?:filters|feature_maps)[\"'])")
    assert len(compared.findall("kind is Kind.FILTERS or kind == 'filters'")) == 2
    texts = {module: path.read_text(encoding="utf-8") for module, path in HOUSE.paths.items() if module != "kinds"}
    assert sum(len(compared.findall(text)) for text in texts.values()) < 10


# --- what is loaded


def loaded(statement: str) -> set[str]:
    """The top-level packages in memory after a statement, in a process of its own."""
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


# What is there wherever cnnlog is; a module of a tracker imports that tracker's package, too.
EVERYWHERE = set(sys.stdlib_module_names) | {"cnnlog", "numpy", "PIL", "fsspec", "tensorboard"}


def test_what_readers_use_loads_no_torch() -> None:
    own = {m for m, path in HOUSE.paths.items() if wing_of(m) == "trackers" and foreign(path) - EVERYWHERE}
    light = [m for m in sorted(HOUSE.paths) if m and wing_of(m) not in WITH_TORCH and m not in own]
    assert not loaded("; ".join(f"import cnnlog.{module}" for module in light)) & {"torch", "lightning", "torchvision"}


def test_importing_cnnlog_loads_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "numpy", "matplotlib", "PIL", "tensorboard", "typer"}
    assert not loaded("import cnnlog") & heavy


def test_the_test_of_lightness_can_fail() -> None:
    assert "numpy" in loaded("from cnnlog.rendering import grids")  # torch takes ten seconds to show the same


def test_an_unknown_public_name_is_refused_with_the_known_ones() -> None:
    import cnnlog

    with pytest.raises(AttributeError, match="FeatureMapMonitor, FilterMonitor, Probe"):
        cnnlog.FilterMonitro  # noqa: B018
