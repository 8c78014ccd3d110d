"""Several processes: rank 0 writes, and no rank notices; of a sharded model all of them capture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from support.places import TESTS, environment
from support.training import events, image_steps

from cnnlog import FilterMonitor, open_run
from cnnlog.runs.store import RunStore

SCRIPT = TESTS / "support" / "strategy_training.py"
RANKS = (0, 1)
SHARDS = hasattr(torch.cpu.Stream, "record_event")  # fully_shard asks for it; torch 2.6 cannot run one on the CPU
sharding = pytest.mark.skipif(not SHARDS, reason="needs a torch whose fully_shard runs on the CPU")

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
    pytest.mark.timeout(560),  # of two processes that import Lightning, beside others
]


def train(folder: Path, *names: str) -> Path:
    """Run the trainings; a hang is a failure, and none of its processes survives it."""
    around = {**environment(), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *names],
            stdout=output, stderr=output, env=around, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(500)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        output.seek(0)
        assert code == 0, output.read()[-3000:]
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two processes do one after the other: starting them takes far longer than the trainings."""
    hows = ("plain", "watched", "failing", "raising", "refused", "sparse", "kept")
    names = [f"{strategy}-{how}" for strategy in ("ddp", "fsdp2")[: 1 + SHARDS] for how in hows]
    more = ["torch-sharded", *(f"fsdp2-{how}" for how in ("compiling", "compiled", "averaging", "averaged"))]
    return train(tmp_path_factory.mktemp("trained"), *names, *(more if SHARDS else []))


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("spawned"), "ddp_spawn-failing", "ddp_spawn-raising")


def ended(folder: Path, name: str) -> list[Any]:
    """What each rank was like at the end of the training."""
    return [torch.load(folder / name / f"rank{rank}.pt", weights_only=True) for rank in RANKS]


def after(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a script finds after `fit`."""
    found: dict[str, Any] = torch.load(folder / name / f"after{rank}.pt", weights_only=True)
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where} {key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        parts = enumerate(zip(one, other, strict=True))
        return [found for key, (a, b) in parts for found in differences(a, b, f"{where} {key}")]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    return [] if one == other else [where]


@pytest.mark.parametrize(
    ("strategy", "how", "steps"),
    [
        ("ddp", "watched", [0, 1, 2, 3]),
        ("ddp", "failing", [0, 2, 3]),
        ("ddp", "sparse", [0, 2, 3]),
        ("ddp", "kept", [0, 2, 3]),
        pytest.param("fsdp2", "sparse", [0, 2, 3], marks=sharding),
        pytest.param("fsdp2", "kept", [0, 2, 3], marks=sharding),
        pytest.param("fsdp2", "watched", [0, 1, 2, 3], marks=sharding),
        pytest.param("fsdp2", "failing", [0, 2, 3], marks=sharding),
        ("ddp_spawn", "failing", [0, 2, 3]),
    ],
)
def test_two_processes_end_as_if_unwatched(
    strategy: str, how: str, steps: list[int], trained: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("spawned") if strategy == "ddp_spawn" else trained
    plain = strategy.removesuffix("_spawn") + "-plain"  # processes that are spawned train the same
    assert differences(ended(trained, plain), ended(folder, f"{strategy}-{how}")) == []
    begin, end = after(trained, plain), after(folder, f"{strategy}-{how}")
    assert differences({**begin, "seconds": 0}, {**end, "seconds": 0}) == []
    assert end["error"] == ""
    run = folder / f"{strategy}-{how}" / "run" / "v0"
    assert [path.name for path in run.rglob("manifest.json")] == ["manifest.json"], "one set of files"
    assert RunStore.open(str(run / "cnnlog")).steps == steps
    assert image_steps(events(run))["filters/00_net.0"] == steps
    last = RunStore.open(str(run / "cnnlog")).read_record(3)
    assert np.array_equal(last.filters["net.0"], end["whole"]["net.0.weight"].float().numpy())
    assert last.feature_maps.keys() == {"net.0", "net.3"}
    assert last.metrics["synced"] == pytest.approx(end["metrics"]["synced"])


@sharding
@pytest.mark.parametrize(("plain", "watched"), [("compiling", "compiled"), ("averaging", "averaged")])
def test_a_sharded_model_that_is_compiled_or_averaged_ends_as_if_unwatched(
    plain: str, watched: str, trained: Path
) -> None:
    unwatched, end = (ended(trained, f"fsdp2-{how}") for how in (plain, watched))
    assert differences(unwatched, end) == []
    for facts in end:
        assert (facts["compiler"]["stats"].get("unique_graphs", 0) > 0) == (watched == "compiled")
    assert RunStore.open(str(trained / f"fsdp2-{watched}" / "run" / "v0" / "cnnlog")).steps == [0, 1, 2, 3]


@sharding
def test_the_average_of_a_sharded_model_is_shown(trained: Path) -> None:
    averages = [seen for seen in ended(trained, "fsdp2-averaged")[0]["seen"] if isinstance(seen, dict)]
    run = open_run(trained / "fsdp2-averaged" / "run" / "v0")
    for step, average in enumerate(averages, 1):
        for layer in ("net.0", "net.3"):
            shown = torch.from_numpy(run.filters(layer, step=step))
            assert torch.equal(shown, torch.tensor(average[f"{layer}.weight"])[: len(shown)])
    trained_last = after(trained, "fsdp2-averaged")["whole"]["net.0.weight"]
    assert not torch.equal(torch.from_numpy(run.filters("net.0", step=3)), trained_last)


@sharding
def test_fsdp2_is_left_as_validation_leaves_it(trained: Path) -> None:
    """The comparison of the two trainings has seen parameters that lay gathered, and others that did not."""
    kinds = dict(ended(trained, "fsdp2-watched")[0]["seen"][2])
    assert kinds["head.weight"] == "Parameter"
    assert kinds["net.0.weight"] == "DTensor"


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=sharding)])
def test_what_goes_wrong_is_raised_on_every_rank(strategy: str, trained: Path) -> None:
    """Else the others would wait for rank 0, for as long as its process lives."""
    for rank in RANKS:
        found = after(trained, f"{strategy}-raising", rank)
        assert found["error"].startswith("RuntimeError: cnnlog: no snapshot of step 1")
        assert "blown" in found["error"]
        assert found["seconds"] < 60
        refused = after(trained, f"{strategy}-refused", rank)["error"]
        assert refused.startswith("ValueError: ")
        assert "The model has no layer 'nowhere'" in refused


def test_spawned_processes_end_with_the_error(spawned: Path) -> None:
    error = after(spawned, "ddp_spawn-raising")["error"]
    assert error.startswith("ProcessRaisedException")
    assert "cnnlog: no snapshot of step 1" in error


@sharding
def test_a_sharded_model_is_captured_whole(trained: Path) -> None:
    for facts in ended(trained, "torch-sharded"):
        assert facts["float kinds"][0] == facts["float kinds"][1]
        assert differences(facts["float plain"], facts["float sharded"]) == []
        filters, maps = facts["half sharded"]
        assert differences(facts["half plain"][0], filters) == [], "those that are trained, not those that are computed"
        assert all((maps[layer] - map_).abs().max() < 0.05 for layer, map_ in facts["half plain"][1].items())
        assert differences(facts["half plain"][1], maps) != [], "computed in bfloat16"


@sharding
def test_a_loop_over_a_sharded_model_is_not_disturbed(trained: Path) -> None:
    """Also where the probe runs through a part of it only, before its first step, and one rank alone fails once."""
    for facts in ended(trained, "torch-sharded"):
        assert differences(facts["unwatched"], facts["watched"]) == []
        assert "already holds a run" in facts["errors"]["folder"]
        assert "expected trackers[0] as a SummaryWriter" in facts["errors"]["trackers"]
    assert RunStore.open(str(trained / "torch-sharded" / "watched" / "cnnlog")).steps == [0, 1, 3]


@sharding
def test_fsdp_1_is_refused(trained: Path) -> None:
    for facts in ended(trained, "torch-sharded"):
        assert "FullyShardedDataParallel (FSDP 1) has flattened" in facts["errors"]["fsdp1"]
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), callbacks=[FilterMonitor()])
    with pytest.raises(ValueError, match=r"FSDPStrategy .* use ModelParallelStrategy"):
        trainer.callbacks[0].setup(trainer, None, "fit")


@sharding
def test_a_synchronised_batch_norm_waits_for_nobody_in_a_probe(trained: Path) -> None:
    """Rank 0 alone probes it. torch trains one on GPUs only, and `DistributedDataParallel` takes none on the CPU."""
    shape, training, error = ended(trained, "torch-sharded")[0]["norm"]
    assert tuple(shape) == (1, 4, 14, 14)
    assert training
    assert "SyncBatchNorm expected input tensor to be on" in error
