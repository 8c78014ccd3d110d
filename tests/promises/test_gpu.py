"""On a CUDA device, copies leave while training goes on. Trainings there are in `test_styles` and `test_averaging`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support.devices import GPU
from support.training import TinyCNN, fit, probe, trainer
from torch import nn

import cnnlog.monitors.live_run
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, open_run
from cnnlog.capture.capture import capture, survey
from cnnlog.capture.loan import borrow
from cnnlog.capture.measuring import measured, weights_now
from cnnlog.snapshot import Snapshot

# torch says so of the mode in which what waits raises
PROTOTYPE = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
pytestmark = [*GPU, PROTOTYPE]
WHERE: dict[str, Any] = {"step": 0, "epoch": 0, "global_step": 0}


@pytest.fixture
def never_waits() -> Iterator[Callable[[], None]]:
    """From its call on, whatever waits for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(8, 8, 3)
    ).cuda()


def test_a_capture_waits_for_nothing(never_waits: Callable[[], None]) -> None:
    model, layers = (
        nn.Sequential(net(), nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(2048, 2000)).cuda(),
        ("0.0", "0.4"),
    )
    of_all = measured(survey(model, probe()))
    assert of_all[-1].filters is not None, "of the large layer some filters are measured"
    modules = dict(model.named_modules())
    capture(model, probe(), filter_layers=layers, map_layers=layers, measured=of_all, **WHERE)
    never_waits()
    before = weights_now(modules, of_all)
    taken: dict[str, Any] = {"filter_layers": layers, "map_layers": layers, "measured": of_all, "before": before}
    seen = capture(model, probe(), **taken, **WHERE, wait=False)
    torch.cuda.set_sync_debug_mode("default")
    assert seen.ready is not None
    assert torch.from_numpy(seen.feature_maps["0.0"]).is_pinned()
    seen.ready()
    for name, weights in seen.weights.items():
        np.testing.assert_array_equal(weights, seen.before[name])


def test_the_fixture_sees_what_waits(never_waits: Callable[[], None]) -> None:
    tensor = torch.rand(3, device="cuda")
    never_waits()
    with pytest.raises(RuntimeError, match="synchroniz"):
        tensor.cpu()


def test_what_training_does_next_does_not_reach_the_copies() -> None:
    model, layers = net(), ("0", "4")
    with borrow(model):
        expected = model[0](probe().tensor.cuda()).cpu().numpy()
    weight = model.get_parameter("0.weight").detach().cpu().numpy()
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):  # the device is behind by a while when the copies are sent for
        busy = busy @ busy / 4096
    seen = capture(model, probe(), filter_layers=layers, map_layers=layers, **WHERE, wait=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert seen.ready is not None
    seen.ready()
    np.testing.assert_array_equal(seen.filters["0"], weight)
    np.testing.assert_array_equal(seen.feature_maps["0"], expected)


def test_who_does_not_ask_for_it_gets_what_has_arrived() -> None:
    model = net()
    seen = capture(model, probe(), filter_layers=("0",), map_layers=("0",), **WHERE)
    assert seen.ready is None
    np.testing.assert_array_equal(seen.filters["0"], model.get_parameter("0.weight").detach().cpu().numpy())


def test_a_training_hands_over_what_is_still_arriving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never_waits: Callable[[], None]
) -> None:
    taken: list[Snapshot] = []

    def watched(*args: Any, **options: Any) -> Snapshot:
        never_waits()
        try:
            taken.append(capture(*args, **options))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return taken[-1]

    monkeypatch.setattr(cnnlog.monitors.live_run, "capture", watched)
    monitors = [FilterMonitor(), FeatureMapMonitor(probe(), on_error="raise")]
    fit(trainer(tmp_path, monitors, accelerator="gpu", devices=1), TinyCNN())
    assert len(taken) == 4
    assert all(snapshot.ready is not None for snapshot in taken)


def test_a_capture_returns_while_the_device_is_still_at_work() -> None:
    """What it costs is measured by scripts/bench; here is told that it does not wait."""
    model = torchvision.models.alexnet(weights=None).cuda()
    image, layers = Probe.chart(224), tuple(f"features.{i}" for i in (0, 3, 6, 8, 10))
    capture(model, image, filter_layers=layers, map_layers=layers, **WHERE)  # the first one sets things up
    busy = torch.rand(8192, 8192, device="cuda")
    for _ in range(60):
        busy = busy @ busy / 8192
    behind = torch.cuda.Event()
    behind.record()
    seen = capture(model, image, filter_layers=layers, map_layers=layers, **WHERE, wait=False)
    assert not behind.query(), "the device was done before, so that nothing is told: give it more to do"
    assert seen.ready is not None
    seen.ready()
    assert behind.query()


def test_metrics_arrive_with_the_arrays(tmp_path: Path) -> None:
    run = trainer(tmp_path, [FilterMonitor()], accelerator="gpu", devices=1, max_epochs=2)
    fit(run, TinyCNN(), validate=True)
    last = open_run(tmp_path / "run" / "v0").metrics()
    known = {name: float(value) for name, value in run.callback_metrics.items()}
    assert last == pytest.approx({**known, "lr-SGD": 0.01})
