"""Event files are the same, byte for byte, with checksums of a library, and TensorBoard reads them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from cnnlog.trackers import fast_records
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.fast_records import quicken
from cnnlog.trackers.summary_writer import TorchEvents


def events(count: int, seed: int = 0) -> Iterator[Event]:
    draw = random.Random(seed)
    for step in range(count):
        picture = Summary.Image(encoded_image_string=draw.randbytes(draw.choice((0, 1, 7, 8, 100, 5_000, 400_000))))
        yield Event(step=step, summary=Summary(value=[Summary.Value(tag="a", image=picture)]))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def is_quick(writer: Any) -> bool:
    return "write" in vars(writer._async_writer._writer)


def test_the_bytes_are_those_of_tensorboard(tmp_path: Path) -> None:
    files = []
    for name, quick in (("stock", False), ("quick", True)):
        writer = EventFileWriter(str(tmp_path / name))
        first = len(only_file(tmp_path / name).read_bytes())
        if quick:
            quicken(writer)
            quicken(writer)
        assert is_quick(writer) == quick
        for event in events(40):
            writer.add_event(event)
        writer.close()
        files.append(only_file(tmp_path / name).read_bytes()[first:])
    assert files[0] == files[1]


@pytest.mark.parametrize("loader", [EventFileLoader, LegacyEventFileLoader])
def test_each_step_can_be_read_as_soon_as_it_is_written(loader: Any, tmp_path: Path) -> None:
    """Both loaders check the sums."""
    file = EventFile(str(tmp_path))
    file.write(Summary(value=[Summary.Value(tag="n", simple_value=0)]), 0)
    reader = loader(str(only_file(tmp_path)))
    seen = [event.step for event in reader.Load() if event.HasField("summary")]
    for step in range(1, 5):
        file.write(Summary(value=[Summary.Value(tag="n", simple_value=step)]), step)
        seen += [event.step for event in reader.Load()]
    assert seen == [0, 1, 2, 3, 4]
    file.close()


def test_a_users_own_writer_goes_on_beside_ours(tmp_path: Path) -> None:
    """Two threads write into one file, in any order, also after it was closed and opened again."""
    users = SummaryWriter(str(tmp_path))
    ours = TorchEvents(users)

    def write() -> None:
        for step in range(200):
            ours.write(Summary(value=[Summary.Value(tag="ours", simple_value=step)]), step)

    thread = threading.Thread(target=write)
    thread.start()
    for step in range(200):
        users.add_scalar("theirs", step, step)
    thread.join()
    users.close()
    ours.write(Summary(value=[Summary.Value(tag="ours", simple_value=200)]), 200)
    assert is_quick(users._get_file_writer().event_writer)
    users.close()
    found: dict[str, list[int]] = {"ours": [], "theirs": []}
    for path in sorted(tmp_path.iterdir()):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag].append(event.step)
    assert found == {"ours": [*range(201)], "theirs": [*range(200)]}


def test_without_compiled_code_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_records, "_checksum", lambda: None)
    writer = EventFileWriter(str(tmp_path))
    quicken(writer)
    assert not is_quick(writer)
    writer.close()


@pytest.mark.parametrize("writer", [None, object()])
def test_what_is_no_writer_of_tensorboards_is_left_alone(writer: object) -> None:
    quicken(writer)


def test_a_writer_of_another_make_is_left_alone(tmp_path: Path) -> None:
    class Own(RecordWriter):  # type: ignore[misc]
        pass

    writer: Any = EventFileWriter(str(tmp_path))
    writer._async_writer._writer = Own(writer._general_file_writer)
    quicken(writer)
    assert not is_quick(writer)
    writer.close()
