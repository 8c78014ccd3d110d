"""A training whose run was begun by version 0.1 goes on: beside it, in today's format, with the same baseline."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from support.places import TESTS
from torch import nn

from cnnlog import Probe, open_run, watch
from cnnlog.runs.manifest import VERSION
from cnnlog.runs.store import RunStore


@pytest.fixture
def old(tmp_path: Path) -> RunStore:
    """A copy of the kept run, as if it had been made with the probe below."""
    folder = tmp_path / "run" / "cnnlog"
    shutil.copytree(TESTS / "data" / "format1" / "cnnlog", folder)
    facts = json.loads((folder / "manifest.json").read_text())
    facts["probe"]["fingerprint"] = probe().fingerprint
    (folder / "manifest.json").write_text(json.dumps(facts))
    return RunStore.open(str(folder))


def probe() -> Probe:
    return Probe.from_tensor(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def net() -> nn.Sequential:
    """As the kept run has its layers, at its last step."""
    convs = OrderedDict(
        conv1=nn.Conv2d(3, 4, 5, 2, 2),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(4, 6, 3, 2, 1),
        last=nn.ReLU(),
        head=nn.Flatten(),
    )
    model = nn.Sequential(convs)
    latest, _ = RunStore.open(str(TESTS / "data" / "format1" / "cnnlog")).read_weights("latest")
    with torch.no_grad():
        for name, weight in latest.items():
            model.get_parameter(f"{name}.weight").copy_(torch.from_numpy(weight))
    return model


def test_it_goes_on_beside_in_todays_format(old: RunStore, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path(old.folder).iterdir()}
    model = net()
    with watch(model, probe(), tmp_path / "run", resume=3) as watcher:
        watcher.snapshot(4)
    assert watcher.folder == f"{old.folder}-{VERSION}"
    assert {path.name: path.read_bytes() for path in Path(old.folder).iterdir()} == before, (
        "the old one stays as it was"
    )
    run = open_run(tmp_path / "run")  # the newer of the two, which holds the baseline, too
    assert (run.manifest.version, run.manifest.carried_from, run.steps) == (VERSION, old.folder, (0, 4))
    np.testing.assert_array_equal(run.filters("conv1", 0), old.read_record(0).filters["conv1"])
    first, now = old.read_weights("baseline")[0]["conv1"], model.get_parameter("conv1.weight").detach().numpy()
    expected = np.linalg.norm(now - first) / np.linalg.norm(first)
    assert run.numbers("weight_change", "conv1", 4) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="has no 'function_change' of conv1 at step 4"):
        run.numbers("function_change", "conv1", 4)  # format 1 kept other positions of the outputs
    assert "cka" not in RunStore.open(watcher.folder).read_record(0).numbers, "a biased one, of another name today"


def test_a_second_resume_finds_what_goes_on(old: RunStore, tmp_path: Path) -> None:
    for step in (4, 5):
        with watch(net(), probe(), tmp_path / "run", resume=step - 1) as watcher:
            watcher.snapshot(step)
    assert watcher.folder == f"{old.folder}-{VERSION}"
    assert open_run(tmp_path / "run").steps == (0, 4, 5)
