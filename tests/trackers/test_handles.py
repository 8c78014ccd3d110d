"""What a loop of one's own gives as `trackers=`: used, each once, left open; or refused in words that help."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboardX
import torch
from lightning.fabric.loggers.csv_logs import CSVLogger as FabricCSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from support.training import TinyCNN, events, image_steps, probe
from torch.utils.tensorboard import SummaryWriter

from cnnlog import open_run, watch
from cnnlog.kinds import Unit
from cnnlog.trackers import COMET, EVENT_WRITERS, RUNS, takes_pictures, tracker_of
from cnnlog.trackers.event_file import EventFile

WRITERS: dict[str, Callable[[str], Any]] = {
    "torch": SummaryWriter,
    "tensorboardX": tensorboardX.SummaryWriter,
    "ours": EventFile,
}
STEPS = [0, 1, 2]


def model() -> TinyCNN:
    torch.manual_seed(0)
    return TinyCNN()


def watched(folder: Path, **more: Any) -> None:
    with watch(model(), probe(), folder, **more) as watcher:
        for step in STEPS:
            watcher.snapshot(step)


class Album:
    """An object of nobody's, with a method for images."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int]] = []
        self.numbers: list[tuple[str, int]] = []

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        image.load()
        self.images.append((name, step))

    def log_metric(self, name: str, value: float, step: int) -> None:
        self.numbers.append((name, step))


# --- what is used


@pytest.mark.parametrize("name", ["torch", "tensorboardX"])
@pytest.mark.parametrize("argument", ["tensorboard", "trackers"])
def test_a_summary_writer_gets_all_and_stays_open(name: str, argument: str, tmp_path: Path) -> None:
    writer = WRITERS[name](str(tmp_path / "board"))
    watched(tmp_path / "run", **({"tensorboard": writer} if argument == "tensorboard" else {"trackers": [writer]}))
    writer.add_scalar("mine", 0.5, 7)
    writer.close()
    found = events(tmp_path / "board")
    steps = image_steps(found)
    assert steps["filters/00_net.0"] == steps["feature_maps/01_net.3"] == STEPS
    assert [number.step for number in found.Scalars("numbers/cka_positions/00_net.0")] == STEPS
    assert [number.step for number in found.Scalars("mine")] == [7]
    assert (len(list((tmp_path / "run").glob("*tfevents*"))) == 1) == (argument == "trackers")  # its own is added
    assert not list((tmp_path / "run").rglob("pictures"))


def test_an_unknown_object_with_a_method_for_images_is_its_own_handle(tmp_path: Path) -> None:
    album = Album()
    watched(tmp_path, tensorboard=False, trackers=[album])
    assert [step for tag, step in album.images if tag == "filters/00_net.0"] == STEPS
    assert [step for tag, step in album.numbers if tag == "numbers/cka_positions/00_net.0"] == STEPS
    assert not list(tmp_path.rglob("pictures"))
    assert not list(tmp_path.rglob("*tfevents*"))


def test_without_any_tracker_pictures_become_files(tmp_path: Path) -> None:
    watched(tmp_path, tensorboard=False)
    found = sorted((tmp_path / "cnnlog" / "pictures" / "filters" / "00_net.0").iterdir())
    assert [path.name for path in found] == [f"step-{step:08d}.png" for step in STEPS]
    assert not list(tmp_path.rglob("*tfevents*"))


def test_several_trackers_get_the_same(tmp_path: Path) -> None:
    album, writer = Album(), SummaryWriter(str(tmp_path / "board"))
    watched(tmp_path / "run", trackers=[album, writer])
    writer.close()
    mine, own = image_steps(events(tmp_path / "board")), image_steps(events(tmp_path / "run"))
    assert mine == own
    assert sorted(album.images) == sorted((tag, step) for tag, steps in own.items() for step in steps)


def test_the_same_handle_twice_is_one(tmp_path: Path) -> None:
    album, writer = Album(), SummaryWriter(str(tmp_path / "board"))
    watched(tmp_path / "run", tensorboard=writer, trackers=[writer, album, album])
    writer.close()
    assert image_steps(events(tmp_path / "board"))["filters/00_net.0"] == STEPS
    assert [step for tag, step in album.images if tag == "filters/00_net.0"] == STEPS


@pytest.mark.parametrize("name", ["torch", "tensorboardX"])
def test_a_folder_gets_one_event_file(name: str, tmp_path: Path) -> None:
    """TensorBoard's plain loader shows the last event file of a folder only."""
    (tmp_path / "elsewhere").mkdir()
    writer = WRITERS[name](os.path.relpath(tmp_path))
    watched(tmp_path / "elsewhere" / "..", trackers=[writer])
    writer.close()
    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    assert image_steps(events(tmp_path))["filters/00_net.0"] == STEPS


@pytest.mark.parametrize("kind", [TensorBoardLogger, FabricTensorBoardLogger])
def test_a_lightning_logger_stands_for_its_handle(kind: Any, tmp_path: Path) -> None:
    logger = kind(tmp_path, name="board", version="v0")
    watched(tmp_path / "run", tensorboard=False, trackers=[logger, logger.experiment])
    logger.finalize("success")
    assert image_steps(events(tmp_path / "board" / "v0"))["filters/00_net.0"] == STEPS


def test_the_table_of_layers_goes_to_trackers_without_tensorboard(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "board"))
    watched(tmp_path / "run", tensorboard=False, trackers=[writer])
    writer.close()
    assert "layers" in events(tmp_path / "board").Tags()["tensors"]


# --- what is refused


def _closed(writer: Any) -> Any:
    writer.close()
    return writer


class MlflowClient:
    """A stand-in by name."""


REFUSED: dict[str, tuple[Callable[[str], Any], type[Exception], str]] = {
    "text": (lambda _: "wandb", TypeError, r"expected trackers as a list of handles, got 'wandb': write trackers="),
    "one handle": (SummaryWriter, TypeError, r"a list of handles, got an object of the class SummaryWriter"),
    "none at all": (lambda _: None, TypeError, r"a list of handles, got None"),
    "None": (lambda _: [None], TypeError, r"\[0\] as .*got None: begin the run first"),
    "second": (
        lambda _: [Album(), 3],
        TypeError,
        r"\[1\] as a SummaryWriter, .*got 3, which has no method",
    ),
    "name": (lambda _: ["tensorboard"], TypeError, r"got 'tensorboard', which has no method such as log_image"),
    "class": (lambda _: [SummaryWriter], TypeError, r"got the class SummaryWriter: give an object of it"),
    "module": (lambda _: [tensorboardX], TypeError, r"got the module tensorboardX: give the run that is under way"),
    "pair": (lambda _: [(1, "id")], TypeError, r"got a tuple of int, str: the only tuple"),
    "empty tuple": (lambda _: [()], TypeError, r"got a tuple of nothing: the only tuple"),
    "client": (lambda _: [MlflowClient()], TypeError, r"MlflowClient: give it with the run's id, \(client, run_id\)"),
    "no method": (lambda _: [object()], TypeError, r"an object of the class object, which has no method"),
    "csv": (lambda at: [CSVLogger(at)], TypeError, r"\[0\] to take pictures, which a CSVLogger does not"),
    "csv of Fabric": (lambda at: [FabricCSVLogger(at)], TypeError, r"which a CSVLogger does not: leave it out"),
    "closed": (
        lambda at: [_closed(SummaryWriter(at))],
        ValueError,
        r"\[0\] to be open.*Writer is closed",
    ),
    "closed of X": (lambda at: [_closed(tensorboardX.SummaryWriter(at))], ValueError, r"SummaryWriter is closed: open"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_trackers_are_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    make, kind, said = REFUSED[name]
    given = make(str(tmp_path / "board"))
    with pytest.raises(kind, match="watch expected trackers.*" + said.removeprefix("expected trackers")):
        watch(model(), probe(), tmp_path / "run", trackers=given)
    assert not (tmp_path / "run").exists()


def test_a_closed_writer_is_refused_as_tensorboard_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="watch expected tensorboard to be open, but the SummaryWriter is closed"):
        watch(model(), probe(), tmp_path, tensorboard=_closed(SummaryWriter(str(tmp_path / "board"))))


@pytest.mark.parametrize(
    ("package", "name", "ended"),
    [
        ("wandb", "Run", {"_is_finished": True}),
        ("comet_ml", "OfflineExperiment", {"ended": True}),
        ("aim", "Run", {"_resources": None}),
        ("clearml", "Task", {"_at_exit_called": True}),
    ],
)
def test_an_ended_run_is_refused(package: str, name: str, ended: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip(package)
    parts = {"__module__": package, "get_logger": lambda _: None, "add_image": lambda self, tag, image: None, **ended}
    with pytest.raises(ValueError, match=f"but the {name} is closed: open a new one"):
        watch(model(), probe(), tmp_path, trackers=[type(name, (), parts)()])


# --- a write that fails


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


def broken_file(writer: Any) -> Any:
    """The object whose `write` and `flush` reach the event file of a writer."""
    if isinstance(writer, EventFile):
        return writer._file._async_writer._writer
    file = writer._get_file_writer().event_writer
    return (
        file._ev_writer._py_recordio_writer
        if isinstance(writer, tensorboardX.SummaryWriter)
        else (file._async_writer._writer)
    )


@pytest.mark.parametrize("name", WRITERS)
def test_after_a_failed_write_the_next_step_goes_into_another_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = WRITERS[name](str(tmp_path))
    tracker = tracker_of(writer, unit=Unit.EPOCH)
    assert tracker is not None
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # torch's writer dies in a thread of its own
    for step in range(4):
        tracker.add_image("filters/a", png(), (6, 4), step, description="d")
        if step == 1:
            for method in ("write", "flush"):
                monkeypatch.setattr(broken_file(writer), method, full)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pytest tells of the thread
                with pytest.raises(OSError, match="No space left"):
                    tracker.commit(step)
        else:
            tracker.commit(step)
    if not isinstance(writer, EventFile):
        writer.add_scalar("mine", 1.0, 9)
    writer.close()
    found = events(tmp_path)
    assert {0, 2, 3} >= set(image_steps(found)["filters/a"]) >= {2, 3}
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    assert tracker.last_step() == 3
    if not isinstance(writer, EventFile):
        assert [number.step for number in found.Scalars("mine")] == [9]


@pytest.mark.parametrize("known", sorted(EVENT_WRITERS | COMET | RUNS), ids=".".join)
def test_a_handle_is_known_without_its_package(known: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlog.trackers.tracker_of", None)  # no tracker is made to find out
    package, name = known
    assert takes_pictures(type(name, (), {"__module__": f"{package}.inner"})())


@pytest.mark.parametrize(
    "handle", [Album(), object(), None, ("client", "id")], ids=lambda handle: type(handle).__name__
)
def test_an_unknown_handle_takes_pictures_if_a_tracker_is_found_for_it(handle: Any) -> None:
    assert takes_pictures(handle) == (tracker_of(handle, unit=Unit.EPOCH) is not None) == isinstance(handle, Album)


def test_event_file_makes_nothing_before_the_first_write(tmp_path: Path) -> None:
    file = EventFile(str(tmp_path / "board"), suffix=".mine")
    tracker = tracker_of(file, unit=Unit.EPOCH)
    assert tracker is not None
    assert tracker.last_step() == -1
    file.close()
    assert not (tmp_path / "board").exists()
    tracker.add_scalar("a", 1.0, 0)
    tracker.commit(0)
    file.close()
    assert [path.suffix for path in (tmp_path / "board").iterdir()] == [".mine"]


def test_a_logger_that_is_not_known_is_its_own_handle_and_its_experiment_helps(tmp_path: Path) -> None:
    """As under Lightning, where whoever follows the model of its loggers has an `experiment`."""
    from cnnlog.trackers.loggers import handle_of

    class Own:
        def __init__(self) -> None:
            self.experiment = Pictures()
            self.numbers: dict[str, float] = {}

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.numbers |= {f"{tag}@{step}": value for tag, value in metrics.items()}

    class Pictures:
        def __init__(self) -> None:
            self.images: list[str] = []

        def log_image(self, name: str, image: Any, step: int) -> None:
            self.images.append(f"{name}@{step}")

    logger = Own()
    assert handle_of(logger) is logger
    watched(tmp_path, tensorboard=False, trackers=[logger])
    assert logger.experiment.images
    assert logger.numbers, "the numbers found no way"
    assert open_run(tmp_path).steps == tuple(STEPS)


class Ended:
    """Not of a tracker that is known, but with names that theirs have when they are closed."""

    ended = True
    _stop_flag = False
    _is_finished = True

    def __init__(self) -> None:
        self.images: list[str] = []

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.images.append(f"{name}@{step}")


def test_only_a_tracker_that_is_known_is_asked_whether_it_is_closed(tmp_path: Path) -> None:
    mine = Ended()
    watched(tmp_path, tensorboard=False, trackers=[mine])
    assert mine.images
