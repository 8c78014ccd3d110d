"""Two processes that train the same make the same files, bit for bit; and the script that says so can say no."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.places import SCRIPTS
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import fingerprints

    return fingerprints


@dataclass(frozen=True)
class Made:
    folder: Path
    sums: dict[str, str]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """The small form of `scripts/outputs.py`, in two processes at the same time."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPTS / "outputs.py", "--small", "--work", folder / "work", folder / "sums.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in processes:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    return [Made(folder / "work", json.loads((folder / "sums.json").read_text())) for folder in folders]


def test_the_same_training_makes_the_same_files(twice: list[Made], fingerprints: Any) -> None:
    first, second = (made.sums for made in twice)
    run, loop = "runs/plain/v0", "runs/loop"
    for name in (
        f"{run}/cnnlog/step-00000002.safetensors/filters/colours",
        f"{run}/cnnlog/step-00000002.safetensors/feature_maps/mix",
        f"{run}/cnnlog/step-00000002.safetensors/numbers/cka_positions/second.0",
        f"{run}/cnnlog/weights-latest.safetensors/second.0",
        f"{run}/cnnlog/manifest.json/settings",
        f"{run}/cnnlog/probe.png",
        f"{run}/events/filters/00_colours@2",
        f"{run}/events/feature_maps_change/03_mix/image1@2",
        f"{run}/events/numbers/weight_change/00_colours@2",
        f"{loop}/cnnlog/step-00000002.safetensors/filters/colours",
        f"{loop}/events/filters_strip/00_colours@2",
        "given/epoch=1.ckpt/FilterMonitor",
    ):
        assert name in first
    assert fingerprints.differences(first, second) == {}


def test_an_array_that_differs_is_named(twice: list[Made], fingerprints: Any) -> None:
    made = twice[0]
    path = made.folder / "runs/plain/v0/cnnlog/step-00000001.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    begin, _ = json.loads(whole[8 : 8 + length])["filters/mix"]["data_offsets"]
    at = 8 + length + begin
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])  # the last bit of one weight
    try:
        name = "runs/plain/v0/cnnlog/step-00000001.safetensors/filters/mix"
        assert fingerprints.differences(made.sums, fingerprints.fingerprints(made.folder)) == {"differs": [name]}
    finally:
        path.write_bytes(whole)


def test_a_number_that_differs_is_named(fingerprints: Any, tmp_path: Path) -> None:
    sums = [_sums_of_events(fingerprints, tmp_path / str(i), value) for i, value in enumerate((0.5, 0.5, 0.25))]
    assert fingerprints.differences(sums[0], sums[1]) == {}
    assert fingerprints.differences(sums[0], sums[2]) == {"differs": ["run/events/cka/a@3"]}


def _sums_of_events(fingerprints: Any, folder: Path, value: float) -> dict[str, str]:
    writer = EventFileWriter(str(folder / "run"))
    writer.add_event(Event(wall_time=value, step=3, summary=Summary(value=[{"tag": "cka/a", "simple_value": value}])))
    writer.close()
    sums: dict[str, str] = fingerprints.fingerprints(folder)
    return sums


def test_a_picture_that_differs_or_is_missing_is_named(twice: list[Made], fingerprints: Any) -> None:
    made = twice[0]
    path = made.folder / "runs/plain/v0/cnnlog/probe.png"
    whole = path.read_bytes()
    name = "runs/plain/v0/cnnlog/probe.png"
    try:
        path.write_bytes(whole + b"\0")
        assert fingerprints.differences(made.sums, fingerprints.fingerprints(made.folder)) == {"differs": [name]}
        path.unlink()
        found = fingerprints.differences(made.sums, fingerprints.fingerprints(made.folder))
        assert found == {"differs": ["names of the files"], "missing": [name]}
    finally:
        path.write_bytes(whole)


def test_what_differs_by_chance_is_left_out(fingerprints: Any, tmp_path: Path) -> None:
    steady = fingerprints.Steady(tmp_path)
    once = f"{tmp_path}/a, made 2024-05-06T07:08:09+00:00 in 0:00:12 by cnnlog 0.1.0, run {'0a' * 16}"
    again = f"<root>/a, made 2025-01-02T03:04:05.678Z in 1:02:03 by cnnlog 0.2.0.dev1, run {'1b' * 16}"
    assert steady(once) == steady(again)
    assert steady("0.16 of 400 at step 12") == "0.16 of 400 at step 12"
