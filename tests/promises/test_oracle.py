"""What cnnlog stores and draws is what an independent implementation sees and computes, for a zoo of networks.

`support/oracle.py` reads the files, `support/formulas.py` has the formulas, `support/oracle_zoo.py` the networks. They
import nothing of cnnlog. Run with `-s` for the table of what was compared.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support import oracle_between, oracle_board, oracle_checks, oracle_pages
from support.oracle_checks import Tally
from support.oracle_runs import (
    PAIRS,
    Runs,
    board_of,
    check_exports,
    exports_of,
    in_lightning,
    json_of,
    page_of,
    sides_of,
)
from support.oracle_zoo import ZOO

SUPPORT = Path(oracle_checks.__file__).parent
LEAST = {
    "filter_norm": 2000,
    "filter_angle": 2000,
    "weight_change": 200,
    "mean_update_ratio": 150,
    "filters_left_out": 5,
    "function_change": 200,
    "channels_left_out": 3,
    "cka_positions": 140,
    "dead_share": 100,
    "map_mean": 1000,
    "map_max": 1000,
    "map_active": 1000,
    "scalar": 1000,
    "stored weights": 250_000,
    "stored outputs": 50_000,
    "stored filters": 50_000,
    "stored feature_maps": 1_900_000,
    "filters": 50_000,
    "filters_change": 35_000,
    "filters_strip": 15_000,
    "feature_maps": 1_900_000,
    "feature_maps_change": 1_400_000,
    "feature_maps_strip": 90_000,
    "range of filters": 3800,
    "range of feature_maps": 8000,
    "range of filters_strip": 400,
    "range of feature_maps_strip": 400,
    "rows of strips": 300,
    "update_ratio": 18,
    "page filters": 70_000,
    "page filters difference": 30_000,
    "page feature_maps": 2_000_000,
    "page feature_maps difference": 1_500_000,
    "page range": 1500,
    "page norm": 1000,
    "page active": 1000,
    "pixels not finite": 100,
    "pixels below": 10,
    "pixels above": 10,
    "notches": 1,
    "strip": 100_000,
    "sheet": 100_000,
    "animation": 400_000,
    "board": 250_000,
    "board range": 2000,
    "board number": 200,
    "page noise": 50,
    "page curve to_go": 150,
}
"""How many values of each kind are compared at least: a little less than today."""
LEAST_OF_FORMAT_2 = {
    **dict.fromkeys(("json function_change", "json weight_change", "json filter_angle", "json cka_positions"), 80),
    **dict.fromkeys(("json curve function_change", "json curve weight_change", "json curve filter_angle"), 200),
    **dict.fromkeys((f"json curve {measure}" for measure in oracle_between.BETWEEN), 25),
    **dict.fromkeys((f"{where} curve {measure}" for where in ("json", "page") for measure in oracle_between.SHOWN), 35),
    "json curve to_go": 150,
    **dict.fromkeys(("json to_go", "json half_way"), 80),
    "json noise": 70,
    "json noise_between": 20,
    **dict.fromkeys(("json weight_distance", "json angle_between", "json function_distance", "json cka_between"), 45),
    **dict.fromkeys(("page curve function_change", "page curve weight_change", "page curve filter_angle"), 200),
    "json curve mean_update_ratio": 150,
    "page curve mean_update_ratio": 150,
    "json curve cka_positions": 130,
    "page curve cka_positions": 130,
    "json curve dead_share": 100,
    "page curve dead_share": 100,
    "page angle": 1000,
}
"""The same where the comparison has the numbers of format 2."""
MODULES = (
    *("formulas", "oracle", "oracle_between", "oracle_board", "oracle_checks", "oracle_exports", "oracle_pages"),
    *("oracle_ranges", "oracle_zoo"),
)
EXPORTED = ("batch_norm", "grouped", "not_finite", "large_maps", "wide")
"""The networks whose runs are exported: colours, slices, means and gray, several images, NaN, maps without room."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("oracle"))


def test_the_oracle_imports_nothing_of_cnnlog() -> None:
    for name in MODULES:
        tree = ast.parse((SUPPORT / f"{name}.py").read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {one.split(".")[0] for one in imported} <= {
            *("__future__", "ast", "base64", "collections", "copy", "dataclasses", "functools", "html", "io"),
            *(
                "itertools",
                "json",
                "math",
                "re",
                "zlib",
                "pathlib",
                "typing",
                "numpy",
                "PIL",
                "torch",
                "tensorboard",
                "support",
            ),
        }
        used = {one.split(".")[1] for one in imported if one.startswith("support.")}
        assert used <= set(MODULES)


@pytest.mark.parametrize("name", ZOO)
def test_numbers_arrays_and_pictures_are_what_the_oracle_computes(runs: Runs, name: str) -> None:
    assert runs[name].tally.faults == []


@pytest.mark.parametrize("name", ZOO)
def test_a_page_shows_what_the_oracle_saw(runs: Runs, name: str, tmp_path: Path) -> None:
    page = page_of(runs, name, tmp_path)
    tally = Tally()
    oracle_pages.check_page(page, sides_of(runs, name), tally)
    oracle_pages.check_curves(page, sides_of(runs, name), tally)
    oracle_between.check_between_page(page, sides_of(runs, name), tally)
    oracle_between.check_table(tmp_path / "page.html", json_of(runs, name), tally)
    runs.others[name] = tally
    assert tally.faults == []


@pytest.mark.parametrize("name", ZOO)
def test_the_numbers_of_a_comparison_are_what_the_oracle_computes(runs: Runs, name: str) -> None:
    json, tally = json_of(runs, name), Tally()
    oracle_pages.check_json(json, sides_of(runs, name), tally)
    oracle_between.check_between_json(json, sides_of(runs, name), tally)
    runs.others[f"json {name}"] = tally
    assert tally.faults == []


@pytest.mark.parametrize("name", EXPORTED)
def test_strips_sheets_and_animations_show_what_the_oracle_saw(runs: Runs, name: str, tmp_path: Path) -> None:
    tally = check_exports(exports_of(runs, name, tmp_path), runs[name])
    runs.others[f"exports {name}"] = tally
    assert tally.faults == []


@pytest.mark.parametrize("name", PAIRS)
def test_a_board_shows_what_the_oracle_saw(runs: Runs, name: str, tmp_path: Path) -> None:
    tally = Tally()
    oracle_board.check_board(board_of(runs, name, tmp_path), sides_of(runs, name), tally)
    runs.others[f"board {name}"] = tally
    assert tally.faults == []


@pytest.mark.parametrize("name", ["batch_norm", "tokens"])
def test_in_lightning_the_update_is_that_of_the_last_optimiser_step(runs: Runs, name: str, tmp_path: Path) -> None:
    found = in_lightning(name, tmp_path)
    runs.others[f"lightning {name}"] = found.tally
    assert found.tally.faults == []
    assert found.tally.of("update_ratio") == 3 * len(found.case.layers)
    assert found.tally.of("mean_update_ratio") == 0


def test_as_many_values_are_compared_as_there_should_be(runs: Runs) -> None:
    total = Tally()
    for name in ZOO:
        total.add(runs[name].tally)
    for tally in runs.others.values():
        total.add(tally)
    print("\n" + total.table())
    with_json = any(name.startswith("json") for name in runs.others)
    for what, least in (LEAST | (LEAST_OF_FORMAT_2 if with_json else {})).items():
        assert total.of(what) >= least, what
