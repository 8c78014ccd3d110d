"""Trackers: which logger gets what, files where there is none, and what a slow or failing one costs."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from support.logged_files import number_files, picture_files
from support.training import TinyCNN, events, fit, image_steps, loader, ours, probe, trainer
from torch.utils.tensorboard import SummaryWriter

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.kinds import Unit
from cnnlog.recording import outbox
from cnnlog.runs.places import shortened
from cnnlog.runs.store import RunStore
from cnnlog.trackers import trackers_for
from cnnlog.trackers.loggers import handle_of
from cnnlog.trackers.other import OtherTracker
from cnnlog.trackers.picture_files import PictureFiles


def monitors() -> list[Any]:
    return [FilterMonitor(), FeatureMapMonitor(probe())]


@pytest.mark.parametrize(
    "tag", ["filters/00_net.0", "maps/00_conv[0]", "a/../b//c", "/x/", "é 20 ~+%", "...", "x" * 400]
)
def test_keys_for_mlflow_are_legal_and_reversible(tag: str) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed; scripts/test --all installs it")
    from mlflow.utils.validation import _validate_metric_name

    from cnnlog.trackers.mlflow import KEY_BYTES, key, tag_of

    assert tag_of(key(tag)) == tag
    _validate_metric_name(shortened(key(tag), KEY_BYTES))


# --- which logger gets what


def test_loggers_are_told_by_name_whatever_package_they_are_of(tmp_path: Path) -> None:
    class TensorBoardLogger:
        experiment = SummaryWriter(str(tmp_path))

    class Mine(TensorBoardLogger):
        pass

    assert handle_of(Mine()) is TensorBoardLogger.experiment
    made = trackers_for([handle_of(Mine())], folder="x", unit=Unit.EPOCH, files=False)
    assert [tracker.name for tracker in made] == ["TensorBoard"]


def test_trainer_module_and_loggers_may_be_those_of_pytorch_lightning(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning", reason="comes with lightning, but is not there")
    import pytorch_lightning as pl
    from pytorch_lightning import loggers

    class Twin(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TinyCNN()
            self.net = self.inner.net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    results = []
    for version, callbacks in enumerate(([], monitors())):
        torch.manual_seed(0)
        module = Twin()
        board = loggers.TensorBoardLogger(tmp_path, name="run", version=version)
        both = [board, loggers.CSVLogger(tmp_path, name="csv", version=version)]
        quiet: dict[str, Any] = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=both, callbacks=callbacks, **quiet)
        trainer.fit(module, loader())
        results.append([parameter.detach().numpy().tobytes() for parameter in module.parameters()])
    assert results[0] == results[1]
    folder = tmp_path / "run" / "version_1"
    assert RunStore.open(str(folder / "cnnlog")).steps == [0, 1, 2]
    steps = image_steps(events(folder))
    assert steps["filters/00_inner.net.0"] == steps["feature_maps/01_inner.net.3"] == [0, 1, 2]
    assert sorted(picture_files(folder / "cnnlog" / "pictures")["filters/00_inner.net.0"]) == ["0", "1", "2"]


def test_the_package_of_a_tracker_that_is_not_used_is_not_imported() -> None:
    code = (
        "import sys; from cnnlog.trackers import trackers_for\n"
        "trackers_for([], folder='x', unit='epoch', files=True); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"wandb", "mlflow", "comet_ml", "aim", "clearml", "tensorboard"}


@pytest.mark.parametrize("logger", [False, "csv"])
def test_without_a_tracker_pictures_are_files_beside_the_store(logger: Any, tmp_path: Path) -> None:
    csv_logger = CSVLogger(tmp_path, name="run", version="v0")
    fit(trainer(tmp_path, monitors(), logger=csv_logger if logger else False), TinyCNN())
    (folder,) = tmp_path.rglob("cnnlog")
    assert folder == tmp_path / ("run/v0/cnnlog" if logger else "cnnlog_logs/version_0/cnnlog")
    found = picture_files(folder / "pictures")
    assert sorted(found["filters/00_net.0"]) == ["0", "1", "2", "3"]
    assert list(found["feature_maps_strip/01_net.3"]) == ["3"]
    assert number_files(folder / "pictures")["numbers/weight_change/00_net.0"]["0"] == 0
    assert (folder / "pictures" / "probe" / "step-00000000.png").read_bytes() == (folder / "probe.png").read_bytes()
    assert not list(folder.rglob("*.tmp"))
    assert PictureFiles(str(folder)).last_step() == 3
    assert RunStore.open(str(folder)).steps == [0, 1, 2, 3]


def test_every_logger_gets_the_pictures_at_once(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="run", version="v0"), CSVLogger(tmp_path, name="csv", version="v0")]
    fit(trainer(tmp_path, monitors(), logger=loggers, max_epochs=1), TinyCNN())
    steps = image_steps(events(tmp_path / "run" / "v0"))
    files = picture_files(tmp_path / "run" / "v0" / "cnnlog" / "pictures")
    assert {tag: [str(step) for step in at] for tag, at in steps.items()} == {t: sorted(at) for t, at in files.items()}


@pytest.mark.parametrize("tag", ["../../x/filters", "a/./b", 'c:\\d*"e"', "x" * 300, "ü" * 200])
def test_picture_files_stay_in_the_folder_whatever_a_layer_is_called(tag: str, tmp_path: Path) -> None:
    files = PictureFiles(str(tmp_path / "run"))
    files.add_image(tag, b"png", (1, 1), 2, description="")
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.resolve().is_relative_to(tmp_path / "run" / "pictures")
    assert written.name == "step-00000002.png"


class Unknown(Logger):
    """A logger of which nothing is known but its methods."""

    name, version = "run", "v0"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.images: list[tuple[str, Any, int]] = []
        self.numbers: list[tuple[str, int | None]] = []

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers += [(tag, step) for tag in metrics]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.images.append((key, images, step or 0))


def test_an_unknown_logger_with_an_image_method_is_used(tmp_path: Path) -> None:
    logger = Unknown(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*val_dataloader.*")
        fit(trainer(tmp_path, monitors(), logger=logger), TinyCNN())
    assert [step for tag, _, step in logger.images if tag == "filters/00_net.0"] == [0, 1, 2, 3]
    assert all(isinstance(image, Image.Image) for _, images, _ in logger.images for image in images)
    assert [step for tag, step in logger.numbers if tag == "cka/00_net.0"] == [0, 1, 2, 3]


def one_picture(logger: Any) -> None:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(data, "PNG")
    tracker = OtherTracker.of(logger)
    assert tracker is not None
    tracker.add_image("filters/a", data.getvalue(), (6, 4), 3, description="what it is")
    tracker.add_scalar("cka/a", 0.5, 3)
    tracker.commit(3)


def test_image_methods_are_called_as_their_parameters_want(tmp_path: Path) -> None:
    got: list[Any] = []

    class Board:
        def add_image(self, tag: str, img_tensor: Any, global_step: Any = None, dataformats: str = "CHW") -> None:
            got.append((tag, img_tensor.shape, global_step, dataformats))

        def add_scalar(self, tag: str, scalar_value: float, global_step: Any = None) -> None:
            got.append((tag, scalar_value, global_step))

    one_picture(handle_of(SimpleNamespace(experiment=Board())))
    assert got == [("filters/a", (4, 6, 3), 3, "HWC"), ("cka/a", 0.5, 3)]

    class Stepless:
        def log_image(self, name: str, image: Any, caption: str = "") -> None:
            got.append((name, image.size, caption))

        def log_metrics(self, metrics: Any, step: int) -> None:
            got.append((metrics, step))

    got.clear()
    one_picture(Stepless())
    assert got == [("filters/a/step-00000003", (6, 4), "what it is"), ({"cka/a": 0.5}, 3)]

    class Strange:
        def log_image(self, image: Any, artifact: str) -> None:
            raise AssertionError

    assert OtherTracker.of(Strange()) is None


# --- a tracker that is slow or down


class Raising(Unknown):
    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        super().log_image(key, images, step)
        if len(self.images) >= 3:
            raise ConnectionError("the server is gone")


class Blocking(Unknown):
    released = threading.Event()

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.released.wait()  # longer than this test may take


@pytest.mark.parametrize("kind", [Raising, Blocking])
def test_a_training_goes_on_when_a_tracker_is_down(
    kind: type[Unknown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "TRACKER_PATIENCE", 0.2)
    results: list[list[bytes]] = []
    Blocking.released.clear()
    for callbacks in ([], monitors()):
        torch.manual_seed(0)
        module = TinyCNN()
        loggers = [TensorBoardLogger(tmp_path, name="run", version=f"v{len(results)}"), kind(tmp_path)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(trainer(tmp_path, callbacks, logger=loggers, max_epochs=15), module)
        results.append([parameter.detach().numpy().tobytes() for parameter in module.parameters()])
    Blocking.released.set()
    assert results[0] == results[1]
    (text,) = [str(w.message) for w in caught if ours(w)]
    if kind is Raising:
        assert "Raising did not take the pictures of step 0, and may miss more; every snapshot is in" in text
    else:
        assert "Blocking still has work after 0 s; the pictures of 16 steps were left out" in text
    folder = tmp_path / "run" / "v1"
    assert RunStore.open(str(folder / "cnnlog")).steps == list(range(16))
    assert image_steps(events(folder))["filters/00_net.0"] == list(range(16))
