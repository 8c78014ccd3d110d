"""Any arguments at all: what is accepted trains, what is refused is refused before that, in words of ours."""

from __future__ import annotations

import linecache
import math
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.training import TinyCNN, fit, probe, trainer
from torch import nn

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, watch
from cnnlog.runs.store import RunStore

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
HUGE = 10**30
ODD: list[Any] = [
    *(None, True, False, 0, -1, HUGE, 1.5, math.nan, math.inf, "", "auto", "net.*", "a\0b", b"x", object(), int),
    *([], (), {}, {"a": 1}, {"x"}, ["x"], [1], [None], (1, 2), [math.nan], [HUGE]),
    *(nn.Conv2d, np.int64(3), np.float32(0.5), np.zeros(3), torch.tensor(2), torch.zeros(1, 3, 4, 4), Path("x")),
]
ANYTHING = st.one_of(
    st.sampled_from(ODD), st.integers(-3, 70), st.floats(), st.text(max_size=6), st.lists(st.integers(-2, 3))
)


class Pictures:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(3, 8, 8)


def watching(**more: Any) -> None:
    asked = {"model": TinyCNN().net, "probe": probe(), "log_dir": tempfile.mkdtemp(), "tensorboard": False, **more}
    if isinstance(asked["log_dir"], (str, Path)) and str(asked["log_dir"]) and "log_dir" in more:
        return  # a folder of that name is made
    watch(**asked).close()


LOOK = ("layers", "value_range", "cmap", "width", "change", "histograms", "on_error", "through", "probe")
SCHEDULE = ("every_n_epochs", "every_n_train_steps", "at_steps")
NORMAL = ("mean", "std")
FACES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "FilterMonitor": (FilterMonitor, (*LOOK, *SCHEDULE, "max_filters", "view", "max_slices")),
    "FeatureMapMonitor": (FeatureMapMonitor, (*LOOK, *SCHEDULE, "max_maps")),
    "Probe.from_tensor": (
        lambda **more: Probe.from_tensor(**{"tensor": torch.rand(3, 8, 8), **more}),
        ("tensor", "names", *NORMAL),
    ),
    "Probe.from_images": (
        lambda **more: Probe.from_images(**{"images": Image.new("RGB", (8, 8)), **more}),
        ("images", "transform", "size", *NORMAL),
    ),
    "Probe.from_dataset": (
        lambda **more: Probe.from_dataset(**{"dataset": Pictures(), **more}),
        ("dataset", "indices"),
    ),
    "Probe.chart": (lambda **more: Probe.chart(**{"size": 32, **more}), ("size", *NORMAL)),
    "watch": (watching, ("model", "log_dir", "map_layers", "unit", "run", "tensorboard", "trackers", "resume", *LOOK)),
}


def said_by_us(error: BaseException) -> bool:
    """Whether it was raised in a `raise` of the package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0)
    return Path(last.filename).is_relative_to(Path(cnnlog.__file__).parent) and line.strip().startswith("raise ")


def raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(("face", "argument"), [(face, name) for face, (_, names) in FACES.items() for name in names])
def test_one_argument(face: str, argument: str) -> None:
    accepted: list[Any] = []

    @FEW
    @given(ANYTHING)
    def holds(value: Any) -> None:
        error = raised(lambda: FACES[face][0](**{argument: value}))
        if error is None:
            accepted.append(value)
        else:
            assert isinstance(error, (ValueError, TypeError, FileNotFoundError)), repr(error)
            assert said_by_us(error), f"{argument}={value!r}: {error!r}"

    inner: Any = holds
    for odd in ODD:
        inner.hypothesis.inner_test(odd)
    holds()
    unwanted = [value for value in accepted if isinstance(value, (bytes, float)) or type(value) is object]
    assert not unwanted or argument in NORMAL, unwanted


# --- what is accepted trains

LAYERS = st.sampled_from(["auto", "net.0", "net.*", "net", "*", ["net.0", "net.3"], [nn.Conv2d], "net.1", "net.9"])
NUMBERS = st.sampled_from([1, 2, 3, 5, 16, 64, HUGE])
COMMON = {
    "layers": LAYERS,
    "value_range": st.sampled_from(["channel", "layer", "step"]),
    "cmap": st.sampled_from(["auto", "gray", "viridis", "RdBu"]),
    "width": st.sampled_from([16, 17, 100, 350, 1000, None]),
    "change": st.booleans(),
    "histograms": st.booleans(),
    "on_error": st.sampled_from(["warn", "raise"]),
    "through": st.sampled_from([None, "net", "nothing"]),
}
FILTERS = {
    **COMMON,
    "max_filters": NUMBERS,
    "max_slices": NUMBERS,
    "view": st.sampled_from(["auto", "rgb", "gray", "slices", "mean"]),
}
MAPS = {**COMMON, "max_maps": NUMBERS}
SCHEDULES = st.sampled_from([{}, {"every_n_epochs": 2}, {"every_n_train_steps": 3}, {"every_n_epochs": HUGE}])


def some(options: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


@settings(FEW, max_examples=12)
@given(
    filters=st.none() | some(FILTERS),
    maps=some(MAPS),
    schedule=SCHEDULES,
    images=st.sampled_from([None, 1, 2]),
)
def test_what_is_accepted_trains(
    filters: dict[str, Any] | None,
    maps: dict[str, Any],
    schedule: dict[str, Any],
    images: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    given_probe = probe(images) if images else None
    monitors = [FilterMonitor(**filters, **schedule)] if filters is not None else []
    run = trainer(folder, [*monitors, FeatureMapMonitor(given_probe, **maps, **schedule)], max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = raised(lambda: fit(run, TinyCNN()))
    if error is not None:
        assert said_by_us(error), repr(error)
        assert isinstance(error, ValueError)
        assert run.global_step == 0
        assert not list(folder.rglob("step-*"))
        return
    assert not [str(w.message) for w in caught if "cnnlog:" in str(w.message)]
    if schedule == {"every_n_train_steps": 3}:
        expected = [0, 3, 6, 8]
    elif "every_n_epochs" in schedule:
        expected = [0, 2]  # the last state, at the latest
    else:
        expected = [0, 1, 2]
    stored = RunStore.open(str(folder / "run" / "v0" / "cnnlog"))
    assert stored.steps == expected
    assert all(stored.read_record(step).feature_maps for step in stored.steps)
