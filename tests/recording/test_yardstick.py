"""What is measured of each snapshot, against the baseline and the snapshot before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cnnlog import Probe, open_run, watch
from cnnlog.metrics.cka import debiased_cka
from cnnlog.recording.yardstick import Yardstick
from cnnlog.runs.manifest import MeasuredLayer
from cnnlog.snapshot import FloatArray, Snapshot

LAYERS = (
    MeasuredLayer("stem", "00_stem", "Conv2d", (4, 3, 3, 3), (1, 4, 8, 8), normalised=True, activation="ReLU"),
    MeasuredLayer("head", "01_head", "Linear", (2, 4), (1, 2), normalised=False),
)


def some(seed: int, shape: tuple[int, ...]) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def snapshot(step: int, *, seed: int = 0) -> Snapshot:
    return Snapshot(
        step,
        step,
        10 * step,
        weights={"stem": some(seed, (4, 3, 3, 3)), "head": some(seed + 1, (2, 4))},
        outputs={"stem": some(seed + 2, (16, 4)), "head": some(seed + 3, (1, 2))},
        peaks={"stem": np.array([1, -1, 0, 2], np.float32)},
    )


def test_the_baseline_is_exactly_unchanged() -> None:
    numbers = Yardstick(LAYERS).measure(snapshot(0))
    for number in ("weight_change", "function_change"):
        assert {name: value.tolist() for name, value in numbers[number].items()} == {"stem": [0.0], "head": [0.0]}
    assert numbers["cka_positions"]["stem"].tolist() == [1.0]
    assert "head" not in numbers["cka_positions"], "of one position there is none"
    assert numbers["dead_share"]["stem"].tolist() == [0.5]
    assert "head" not in numbers["dead_share"]
    assert not {"update_ratio", "mean_update_ratio", "filters_left_out", "channels_left_out"} & numbers.keys()


def test_numbers_are_those_of_their_formulas() -> None:
    yardstick, first, later = Yardstick(LAYERS), snapshot(0), snapshot(3, seed=9)
    yardstick.measure(first)
    yardstick.move_on(first)
    numbers = yardstick.measure(later)
    old, new = ({k: v.astype(np.float64).reshape(len(v), -1) for k, v in s.weights.items()} for s in (first, later))
    unit = [w["stem"] / np.linalg.norm(w["stem"], axis=1, keepdims=True) for w in (old, new)]
    assert numbers["weight_change"]["stem"] == pytest.approx(np.linalg.norm(unit[1] - unit[0]) / 2, rel=1e-5)
    whole = np.linalg.norm(new["head"] - old["head"]) / np.linalg.norm(old["head"])
    assert numbers["weight_change"]["head"] == pytest.approx(whole, rel=1e-5)
    assert numbers["mean_update_ratio"]["head"] == pytest.approx(whole / 30, rel=1e-5)
    cosine = (unit[0] * unit[1]).sum(axis=1)
    np.testing.assert_allclose(numbers["filter_angle"]["stem"], np.degrees(np.arccos(cosine)), rtol=1e-4)
    x, y = first.outputs["stem"].astype(np.float64), later.outputs["stem"].astype(np.float64)
    assert numbers["function_change"]["stem"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert numbers["cka_positions"]["stem"] == pytest.approx(debiased_cka(x, y))


def test_where_the_last_step_is_known_the_update_is_of_that_step_alone() -> None:
    yardstick, first, later = Yardstick(LAYERS), snapshot(0), snapshot(1, seed=9)
    yardstick.measure(first)
    yardstick.move_on(first)
    before = {"head": (later.weights["head"] / np.float32(1.01)).astype(np.float32)}
    numbers = yardstick.measure(replace(later, before=before))
    assert numbers["update_ratio"]["head"] == pytest.approx(0.01, rel=1e-3)
    assert "head" not in numbers["mean_update_ratio"]
    assert "stem" in numbers["mean_update_ratio"]


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    yardstick, first, later = Yardstick(LAYERS), snapshot(0), snapshot(1, seed=9)
    yardstick.measure(first)
    yardstick.move_on(first)
    later.weights["stem"][1, 0, 0, 0] = np.nan
    later.outputs["stem"][3, 2] = np.inf
    numbers = yardstick.measure(replace(later, peaks={"stem": np.array([1, np.nan, 0, 2], np.float32)}))
    x, y = (of.outputs["stem"].astype(np.float64)[:, [0, 1, 3]] for of in (first, later))
    w, v = (of.weights["stem"].astype(np.float64)[[0, 2, 3]].reshape(3, -1) for of in (first, later))
    w, v = (of / np.linalg.norm(of, axis=1, keepdims=True) for of in (w, v))
    assert numbers["weight_change"]["stem"] == pytest.approx(np.linalg.norm(v - w) / np.linalg.norm(w), rel=1e-5)
    assert numbers["filters_left_out"]["stem"] == 1
    assert np.isnan(numbers["filter_angle"]["stem"]).tolist() == [False, True, False, False]
    assert numbers["function_change"]["stem"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-5)
    assert numbers["channels_left_out"]["stem"] == 1
    assert numbers["dead_share"]["stem"] == pytest.approx(1 / 3)


def test_where_nothing_finite_is_left_there_is_no_number() -> None:
    """Else a run whose weights are all NaN reads like one that stands still."""
    yardstick, first, later = Yardstick(LAYERS), snapshot(0), snapshot(1, seed=9)
    yardstick.measure(first)
    yardstick.move_on(first)
    for arrays in (later.weights, later.outputs):
        for array in arrays.values():
            array[...] = np.nan
    numbers = yardstick.measure(later)
    for number in ("weight_change", "filter_angle", "mean_update_ratio", "function_change", "cka_positions"):
        assert all(np.isnan(values).all() for values in numbers[number].values()), number


def test_of_a_layer_without_a_baseline_nothing_is_told() -> None:
    """As after a resume of a run whose files do not hold it."""
    yardstick = Yardstick(LAYERS)
    yardstick.restore(0, weights={"stem": snapshot(0).weights["stem"]}, outputs={}, latest=None)
    numbers = yardstick.measure(snapshot(2, seed=9))
    assert numbers["weight_change"].keys() == {"stem"}
    assert not {"function_change", "cka_positions", "mean_update_ratio"} & numbers.keys()
    assert numbers["dead_share"].keys() == {"stem"}


def test_a_convolution_and_its_norm_that_are_scaled_alike_have_not_changed(tmp_path: Path) -> None:
    """The outputs of the network are the same, so no number of a layer may call that a change."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-12), nn.ReLU(), nn.Conv2d(8, 4, 3))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    probe = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with watch(model, Probe.from_tensor(probe), tmp_path, tensorboard=False) as watcher:
        watcher.snapshot(0)
        before = model.eval()(probe)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(0.5)
            norm.running_mean.mul_(0.5)  # type: ignore[union-attr]
            norm.running_var.mul_(0.25)  # type: ignore[union-attr]
        torch.testing.assert_close(model(probe), before)
        watcher.snapshot(1)
    run = open_run(tmp_path)
    assert run.numbers("weight_change", "0")[0] < 1e-6
    assert np.nanmax(run.numbers("filter_angle", "0")) < 1e-4
    assert run.numbers("function_change", "3")[0] < 1e-5
    assert run.numbers("weight_change", "3")[0] == 0
    assert run.numbers("filter_norm", "0")[0] > 0


@pytest.mark.parametrize(
    ("counts", "divided_by"),
    [
        ([0, 10, 25], {1: 10, 2: 15}),  # always told
        ([0, 0, 0, 0], {1: 1, 2: 1, 3: 1}),  # never told: the way a snapshot
        ([0, 10, 0, 40, 55], {1: 10, 4: 15}),  # told sometimes: no number where it is not known
        ([0, 0, 30, 45], {1: 1, 2: 1, 3: 1}),  # told later: one meaning for the whole curve
        ([7, 10], {1: 3}),
        ([0, 10, 10], {1: 10}),
    ],
)
def test_the_mean_step_is_of_one_kind_in_a_run(counts: list[int], divided_by: dict[int, int]) -> None:
    yardstick, found, before = Yardstick(LAYERS), {}, None
    for step, count in enumerate(counts):
        taken = replace(snapshot(step, seed=10 * step), global_step=count)
        number = yardstick.measure(taken).get("mean_update_ratio", {}).get("head")
        if number is not None and before is not None:
            old, new = (s.weights["head"].astype(np.float64) for s in (before, taken))
            found[step] = np.linalg.norm(new - old) / np.linalg.norm(old) / float(number[0])
        yardstick.move_on(taken)
        before = taken
    assert found == pytest.approx(divided_by, rel=1e-4)


def test_a_loop_that_does_not_begin_at_0_knows_no_steps_before() -> None:
    yardstick = Yardstick(LAYERS)
    for step, count in ((3, 0), (4, 40), (5, 50)):
        numbers = yardstick.measure(taken := replace(snapshot(step, seed=step), global_step=count))
        assert ("mean_update_ratio" in numbers) == (step == 5)
        yardstick.move_on(taken)
