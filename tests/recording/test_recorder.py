"""From snapshots to store and trackers: the store comes first, and nothing that fails afterwards costs a step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.measured import measured_layers, snapshot_of

from cnnlog.kinds import Unit
from cnnlog.recording import drawer, outbox
from cnnlog.recording.drawer import LoggedPicture, Look
from cnnlog.recording.outbox import Parcel
from cnnlog.recording.recorder import Recorder
from cnnlog.recording.yardstick import Yardstick
from cnnlog.rendering import picture
from cnnlog.rendering.png import encode_png
from cnnlog.runs.manifest import Manifest, WatchedLayer
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot
from cnnlog.trackers import Tracker
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.tensorboard import TensorBoardTracker

LAYERS = (
    WatchedLayer("stem", "00_stem", "Conv2d", (6, 3, 5, 5), (1, 6, 12, 12), "rgb"),
    WatchedLayer("body.0", "01_body.0", "Conv2d", (8, 6, 3, 3), (1, 8, 6, 6), "slices"),
)
PICTURES_A_STEP = 2 * 2 * 2  # layers, kinds, and the change of each, from the second step on


def snapshot(step: int, *, maps: bool = True, filters: bool = True) -> Snapshot:
    generator = np.random.default_rng(step)

    def some(shape: tuple[int, ...] | None) -> np.ndarray:
        assert shape is not None
        return (generator.standard_normal(shape) * 1.5**step).astype(np.float32)  # outgrows its range now and then

    return snapshot_of(
        step,
        {layer.name: some(layer.weight_shape) for layer in LAYERS} if filters else {},
        {layer.name: some(layer.output_shape) for layer in LAYERS} if maps else {},
        steps_an_epoch=4,
    )


def store(folder: Path) -> RunStore:
    manifest = Manifest(LAYERS, Unit.EPOCH, 0, {}, {}, {}, "Net", "2026-01-01T00:00:00")
    return RunStore(str(folder / "cnnlog"), manifest)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Gate:
    """Makes a tracker stand still at its first picture."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, step: int, tag: str) -> None:
        self.reached.set()
        assert self.open.wait(20)


class Keeping:
    """A tracker that keeps what it gets."""

    def __init__(self, *, fail: Callable[[int, str], None] = lambda step, tag: None, name: str = "Tracker") -> None:
        self.name = name
        self.fail = fail
        self.images: list[tuple[int, str]] = []
        self.scalars: list[tuple[int, str]] = []
        self.committed: list[int] = []

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        self.fail(step, tag)
        assert png.startswith(b"\x89PNG")
        assert description
        self.images.append((step, tag))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((step, tag))

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        pass

    def add_histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        pass

    def commit(self, step: int) -> None:
        self.committed.append(step)

    def last_step(self) -> int | None:
        return None


def recorder(kept: RunStore | None, *trackers: Tracker) -> Recorder:
    measured = measured_layers(LAYERS)
    return Recorder(LAYERS, measured=measured, filters=Look(), maps=Look(), store=kept, trackers=trackers, probe=None)


def whats(made: Recorder) -> list[str]:
    return [problem.what for problem in made.take_problems()]


def assert_no_threads() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cnnlog")]


# --- the ordinary course


def test_every_snapshot_is_stored_and_drawn_in_order(tmp_path: Path) -> None:
    tracker = Keeping()
    made = recorder(store(tmp_path), tracker)
    for step in range(6):
        made.record(snapshot(step))
    made.finish()
    made.close()
    assert whats(made) == []
    assert store(tmp_path).steps == [0, 1, 2, 3, 4, 5]
    assert tracker.committed == [0, 1, 2, 3, 4, 5, 5]  # the strips come last
    plain = [step for step, tag in tracker.images if "_strip/" not in tag]
    assert plain == [step for step in range(6) for _ in range(PICTURES_A_STEP if step else PICTURES_A_STEP // 2)]
    assert [tag for step, tag in tracker.images if step == 0 and "_change/" in tag] == []
    assert_no_threads()


def test_a_strip_is_drawn_once_for_what_is_new(tmp_path: Path) -> None:
    tracker = Keeping()
    made = recorder(store(tmp_path), tracker)
    made.record(snapshot(0))
    for _ in range(3):
        made.finish()
    made.close()
    assert [step for step, tag in tracker.images if tag.startswith("filters_strip/00")] == [0]


def test_nothing_is_kept_or_lost_without_a_store() -> None:
    tracker = Keeping()
    made = recorder(None, tracker)
    made.record(snapshot(0))
    made.finish()
    made.close()
    assert whats(made) == []
    assert tracker.committed == [0]


# --- drawing fails


@pytest.mark.parametrize(
    ("module", "broken"), [(drawer, "encode_png"), (picture, "maps_grid"), (picture, "filters_grid")]
)
def test_a_drawing_that_raises_loses_no_stored_step(
    module: ModuleType, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room for a picture")

    tracker = Keeping()
    made = recorder(store(tmp_path), tracker)
    made.record(snapshot(0))
    made.drain()
    with monkeypatch.context() as patch:
        patch.setattr(module, broken, fail)
        made.record(snapshot(1))
        made.drain()
    made.record(snapshot(2))
    made.close()
    (problem,) = made.take_problems()
    assert problem.message == "the pictures of step 1 could not be drawn"
    assert isinstance(problem.error, MemoryError)
    assert store(tmp_path).steps == [0, 1, 2]
    np.testing.assert_array_equal(store(tmp_path).read_record(1).filters["stem"], snapshot(1).filters["stem"])
    assert tracker.committed == [0, 2]


def test_the_store_is_written_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seen = store(tmp_path), []
    draw = encode_png

    def watch(*args: Any, **more: Any) -> bytes:
        seen.append(kept.steps)
        return draw(*args, **more)

    monkeypatch.setattr(drawer, "encode_png", watch)
    made = recorder(kept, Keeping())
    made.record(snapshot(0))
    made.close()
    assert seen
    assert all(steps == [0] for steps in seen)


def has_committed(tracker: Keeping, steps: int) -> Callable[[], bool]:
    return lambda: len(tracker.committed) == steps


def test_a_snapshot_is_taken_when_the_one_before_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill costs at most one, however slow the disk is; drawing may take longer still."""
    kept, write, draw = store(tmp_path), RunStore.write_record, encode_png

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def later(*args: Any, **more: Any) -> Any:
            time.sleep(seconds)
            return function(*args, **more)

        return later

    monkeypatch.setattr(RunStore, "write_record", slow(write, 0.05))
    monkeypatch.setattr(drawer, "encode_png", slow(draw, 0.01))
    made = recorder(kept, Keeping())
    for step in range(5):
        made.record(snapshot(step))
        assert kept.steps == list(range(len(kept.steps)))
        assert len(kept.steps) >= step
    made.close()
    assert kept.steps == [0, 1, 2, 3, 4]


def test_a_snapshot_that_cannot_be_measured_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Yardstick.measure

    def fails_once(self: Yardstick, taken: Snapshot) -> Any:
        if taken.step == 1:
            raise MemoryError("no room")
        return measure(self, taken)

    monkeypatch.setattr(Yardstick, "measure", fails_once)
    made = recorder(store(tmp_path))
    for step in range(4):
        made.record(snapshot(step))
    made.close()
    (problem,) = made.take_problems()
    assert problem.message == "keeping the snapshot of step 1 failed"
    assert store(tmp_path).steps == [0, 2, 3]


def test_a_snapshot_that_never_arrives_from_a_device_holds_nobody_up(tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("the device is gone")

    made = recorder(store(tmp_path))
    for step in range(4):
        made.record(replace(snapshot(step), ready=lost if step == 1 else None))
    made.close()
    (problem,) = made.take_problems()
    assert problem.message == "keeping the snapshot of step 1 failed"
    assert store(tmp_path).steps == [0, 2, 3]


# --- a tracker fails


def test_a_tracker_that_raises_at_the_third_picture_costs_the_store_nothing(tmp_path: Path) -> None:
    given = []

    def third(step: int, tag: str) -> None:
        given.append(tag)
        if step == 1 and len(given) % 3 == 0:
            raise ConnectionError("the server is gone")

    bad, good = Keeping(fail=third, name="Bad"), Keeping(name="Good")
    made = recorder(store(tmp_path), bad, good)
    for step in range(4):
        made.record(snapshot(step))
    made.close()
    (problem,) = made.take_problems()
    assert problem.what == "Bad"
    assert f"did not take the pictures of step 1, and may miss more; every snapshot is in {tmp_path}" in problem.message
    assert isinstance(problem.error, ConnectionError)
    assert store(tmp_path).steps == good.committed == [0, 1, 2, 3]
    assert bad.committed == [0, 2, 3]
    assert_no_threads()


def test_a_tracker_that_blocks_holds_up_neither_the_store_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "TRACKER_PATIENCE", 0.2)
    gate = Gate()
    slow, good = Keeping(fail=gate, name="Slow"), Keeping(name="Good")
    made = recorder(store(tmp_path), slow, good)
    for step in range(12):
        made.record(snapshot(step))
        made.drain()
        assert gate.reached.wait(20)
        until(has_committed(good, step + 1))
    made.close()
    problems = made.take_problems()
    gate.open.set()
    assert store(tmp_path).steps == good.committed == list(range(12))
    (problem,) = problems
    assert problem.what == "Slow"
    assert (
        problem.message == "Slow still has work after 0 s; the pictures of 11 steps were left out"
    )  # all but the first
    until(lambda: not any(thread.name == "cnnlog to Slow" for thread in threading.enumerate()))


def test_a_slow_tracker_says_how_many_steps_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "TRACKER_BYTES_WAITING", 1)
    gate = Gate()
    slow = Keeping(fail=gate, name="Slow")
    made = recorder(store(tmp_path), slow)
    for step in range(12):
        made.record(snapshot(step))
        made.drain()
        assert gate.reached.wait(20)
    gate.open.set()
    made.close()
    (problem,) = made.take_problems()
    assert slow.committed == [0, 1]  # one in hand and one that waits
    assert problem.message == "Slow was too slow; the pictures of 10 steps were left out"


def test_the_queue_of_a_tracker_counts_bytes_so_that_a_fast_training_loses_no_pictures(tmp_path: Path) -> None:
    gate = Gate()
    slow = Keeping(fail=gate, name="Slow")
    made = recorder(store(tmp_path), slow)
    for step in range(40):
        made.record(snapshot(step % 8, maps=step < 8))
        made.drain()
    gate.open.set()
    made.close()
    assert whats(made) == []
    assert len(slow.committed) == 40
    parcel = Parcel(0, (LoggedPicture("a", b"12345", (1, 1), ""),), {}, {}, {"b": np.ones(3, "f4")})
    assert parcel.nbytes == 5 + 12


def test_the_end_waits_once_for_all_trackers_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "TRACKER_PATIENCE", 1.0)
    gates = [Gate(), Gate(), Gate()]
    made = recorder(store(tmp_path), *(Keeping(fail=gate, name=f"Slow {i}") for i, gate in enumerate(gates)))
    made.record(snapshot(0))
    made.drain()
    begun = time.monotonic()
    made.close()
    taken = time.monotonic() - begun
    for gate in gates:
        gate.open.set()
    assert 1 <= taken < 3  # one after the other they would take 3 s
    assert whats(made) == ["Slow 0", "Slow 1", "Slow 2"]
    until(lambda: not any(thread.name.startswith("cnnlog to") for thread in threading.enumerate()))


def test_what_a_failed_step_left_in_tensorboards_tracker_is_not_in_the_next_one() -> None:
    written: list[tuple[int, list[str]]] = []

    class Written:
        folder = ""

        def write(self, summary: Any, step: int) -> None:
            written.append((step, [value.tag for value in summary.value]))

        def let_go(self) -> None:
            raise AssertionError("nothing failed")

    tracker = TensorBoardTracker(Written())
    tracker.add_scalar("lost", 1.0, 0)  # and then something raised
    tracker.add_scalar("kept", 1.0, 1)
    tracker.commit(1)
    tracker.commit(2)
    assert written == [(1, ["kept"]), (2, [])]


# --- the store fails


def test_a_baseline_that_could_not_be_stored_is_stored_first_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, written = store(tmp_path), []
    write = RunStore.write_record
    full = True

    def maybe(self: RunStore, record: Any) -> int:
        if full:
            raise OSError(28, "No space left on device")
        written.append(record.step)
        return write(self, record)

    monkeypatch.setattr(RunStore, "write_record", maybe)
    made = recorder(kept)
    for step in range(2):
        made.record(snapshot(step))
        made.drain()
    assert kept.steps == []
    full = False
    for step in range(2, 4):
        made.record(snapshot(step))
    made.close()
    assert written == [0, 2, 3]
    assert set(whats(made)) == {"store"}
    opened = RunStore.open(kept.folder)
    np.testing.assert_array_equal(opened.read_record(0).filters["stem"], snapshot(0).filters["stem"])
    np.testing.assert_array_equal(opened.read_weights("baseline")[0]["stem"], snapshot(0).filters["stem"])
    assert opened.read_record(2).numbers["weight_change"]["stem"].min() > 0


def test_errors_of_other_file_systems_are_store_problems_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BucketError(Exception):
        pass

    def fail(*_: Any) -> int:
        raise BucketError("access denied")

    monkeypatch.setattr(RunStore, "write_record", fail)
    tracker = Keeping()
    made = recorder(store(tmp_path), tracker)
    made.record(snapshot(0))
    made.finish()
    made.close()
    assert whats(made) == ["store"]
    assert tracker.committed == [0], "the pictures are sent all the same, and no strip without steps"


def test_the_manifest_names_the_baseline_that_was_taken(tmp_path: Path) -> None:
    made = recorder(store(tmp_path))
    made.record(snapshot(2))  # the probe failed at 0 and 1
    made.record(snapshot(3))
    made.close()
    opened = RunStore.open(store(tmp_path).folder)
    assert opened.manifest.baseline_step == 2
    assert opened.read_record(2).numbers["weight_change"]["stem"].max() == 0


# --- values that are not numbers, and dead layers


def test_all_layers_with_values_that_are_not_numbers_make_one_problem(tmp_path: Path) -> None:
    made = recorder(store(tmp_path), Keeping())
    made.record(snapshot(0))
    broken = snapshot(1)
    for array in (*broken.filters.values(), *broken.feature_maps.values()):
        array.flat[0], array.flat[1], array.flat[2] = np.nan, np.inf, -np.inf
    made.record(broken)
    made.close()
    (problem,) = made.take_problems()
    assert problem.what == "finite"
    assert problem.message == (
        "values of stem (filters, 3 of 450), body.0 (filters, 3 of 432), stem (feature maps, 3 of 864) and 1 more are "
        "NaN or infinite at step 1; they are drawn in green"
    )
    assert store(tmp_path).read_record(1).filters["stem"].tobytes() == broken.filters["stem"].tobytes()


def test_infinities_of_both_signs_are_counted_without_a_warning_of_numpy(tmp_path: Path) -> None:
    made = recorder(store(tmp_path))
    broken = snapshot(0)
    broken.filters["stem"].flat[:2] = np.inf, -np.inf  # their sum is invalid
    made.record(broken)
    made.close()
    assert [problem.message.split(" are ")[0] for problem in made.take_problems()] == [
        "values of stem (filters, 2 of 450)"
    ]


def test_dead_layers_make_one_problem(tmp_path: Path) -> None:
    made = recorder(store(tmp_path))
    alive = snapshot(0)
    made.record(alive)
    made.record(replace(alive, step=1, peaks={name: -abs(peaks) for name, peaks in alive.peaks.items()}))
    made.close()
    (problem,) = made.take_problems()
    assert problem.message == (
        "no channel of stem, body.0 is above 0 anywhere on the probe at step 1, after the activation: dead"
    )
    assert problem.error is None


# --- resume


def assert_same_records(one: RunStore, other: RunStore, step: int) -> None:
    a, b = one.read_record(step), other.read_record(step)
    for group in ("filters", "feature_maps"):
        assert getattr(a, group).keys() == getattr(b, group).keys()
        for name, array in getattr(a, group).items():
            np.testing.assert_array_equal(getattr(b, group)[name], array)
    assert a.numbers.keys() == b.numbers.keys()
    assert a.ranges.keys() == b.ranges.keys() != set()
    for read_a, read_b in ((a.numbers, b.numbers), *((a.ranges[kind], b.ranges[kind]) for kind in a.ranges)):
        for key, by_part in read_a.items():
            for part, values in by_part.items():
                np.testing.assert_array_equal(read_b[key][part], values)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_run_is_equal_to_an_uninterrupted_one(cut: int, tmp_path: Path) -> None:
    def due(step: int) -> Snapshot:
        return snapshot(step, maps=step % 3 == 0)  # maps are due at 0, 3, 6: cuts fall on steps with and without

    whole = recorder(store(tmp_path / "whole"))
    for step in range(8):
        whole.record(due(step))
    whole.close()
    first = recorder(store(tmp_path / "parts"))
    for step in range(cut):
        first.record(due(step))
    first.close()
    old = RunStore.open(store(tmp_path / "parts").folder)
    second = recorder(old)
    second.resume(old, now=cut, carried=False)
    assert second.last_step == cut - 1
    for step in range(cut, 8):
        second.record(due(step))
    second.close()
    assert whats(first) == whats(second) == whats(whole) == []
    doubled = RunStore.open(old.folder).read_record(7).ranges["filters"]["stem"]["doubled"]
    assert doubled.max() >= 2, "the ranges have something to remember"
    for step in range(8):
        assert_same_records(store(tmp_path / "whole"), store(tmp_path / "parts"), step)


def test_a_strip_after_a_resume_without_new_maps(tmp_path: Path) -> None:
    first = recorder(store(tmp_path))
    first.record(snapshot(0))
    first.close()
    old, tracker = RunStore.open(store(tmp_path).folder), Keeping()
    second = recorder(old, tracker)
    second.resume(old, now=0, carried=False)
    second.record(snapshot(1, maps=False))
    second.finish()
    second.close()
    assert whats(second) == []
    tags = [tag for _, tag in tracker.images if "_strip/" in tag]
    assert tags == [f"{kind}_strip/{layer.tag}" for kind in ("filters", "feature_maps") for layer in LAYERS]


def test_no_update_is_measured_across_a_kill_between_two_files(tmp_path: Path) -> None:
    first = recorder(store(tmp_path))
    for step in range(3):
        first.record(snapshot(step))
    first.close()
    old = RunStore.open(store(tmp_path).folder)
    old.write_weights("latest", snapshot(1).filters, 1)  # killed after step-00000002, before weights-latest
    second = recorder(old)
    second.resume(old, now=2, carried=False)
    second.record(snapshot(3))
    second.record(snapshot(4))
    second.close()
    assert "mean_update_ratio" not in old.read_record(3).numbers
    assert "mean_update_ratio" in old.read_record(4).numbers


class Album(Keeping):
    """Keeps the pictures, too."""

    def __init__(self, last: int = -1) -> None:
        super().__init__()
        self.last = last
        self.pngs: dict[int, dict[str, bytes]] = {}

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        self.pngs.setdefault(step, {})[tag] = png

    def last_step(self) -> int | None:
        return self.last


def test_a_resume_draws_what_a_kill_kept_from_a_tracker(tmp_path: Path) -> None:
    kept, whole, rest = store(tmp_path), Album(), Album(last=2)  # killed before those of steps 3 and 4 went out
    first = recorder(kept, whole)
    for step in range(5):
        first.record(snapshot(step))
    first.close()
    second = recorder(kept, rest)
    second.resume(RunStore.open(kept.folder), now=4, carried=False)
    second.record(snapshot(5))
    second.close()
    assert not second.take_problems()
    assert rest.committed == [3, 4, 5]
    assert {step: rest.pngs[step] for step in (3, 4)} == {step: whole.pngs[step] for step in (3, 4)}


def test_tensorboard_tells_its_last_step_also_from_a_file_that_a_kill_cut_off(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(EventFile(str(tmp_path)))
    assert tracker.last_step() == -1
    for step in range(3):
        tracker.add_image("filters/00_stem", b"\x89PNG" + bytes(500), (1, 1), step, description="d")
        tracker.add_scalar("loss", 1.0, step)
        tracker.commit(step)
    tracker.add_scalar("loss", 1.0, 9)
    tracker.commit(9)
    assert tracker.last_step() == 2
    (path,) = tmp_path.glob("*tfevents*")
    path.write_bytes(path.read_bytes()[:-200])  # into step 2's event
    assert tracker.last_step() == 1
