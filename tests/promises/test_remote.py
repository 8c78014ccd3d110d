"""Log folders that are not on this machine: in fsspec's memory, and in an object store that speaks S3."""

from __future__ import annotations

import inspect
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import lightning as L
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from support.records import manifest, record
from support.training import TinyCNN, events, fit, image_steps, probe, trainer

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.kinds import Kind
from cnnlog.runs.places import locate
from cnnlog.runs.store import RunStore

pytestmark = [
    # Lightning on the refused and the resumed training
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from .*"),
    # the packages that talk to S3
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Boto3 will no longer support Python.*"),
]
LOGGERS: dict[str, Callable[..., Any]] = {"tensorboard": TensorBoardLogger, "csv": CSVLogger}
KINDS = tuple(Kind)
EPOCHS = 2


@pytest.fixture(scope="module")
def memory() -> Iterator[str]:
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a server on this machine, that S3's clients in this process talk to."""
    why = "the packages for S3 are not installed (scripts/setup --all)"
    s3fs = pytest.importorskip("s3fs", reason=why)
    server = pytest.importorskip("moto.server", reason=why)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return train(False, tmp_path_factory.mktemp("plain"), [])


def train(logger: Any, folder: Path, monitors: list[L.Callback], *, epochs: int = EPOCHS, **more: Any) -> list[bytes]:
    torch.manual_seed(0)
    module = TinyCNN()
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(folder, [*monitors, saves], logger=logger, max_epochs=epochs, enable_checkpointing=True)
    fit(run, module, **more)
    return [p.detach().numpy().tobytes() for p in module.parameters()]


def watched() -> list[L.Callback]:
    return [FilterMonitor(), FeatureMapMonitor(probe())]


def drawn_steps(how: str, log_dir: str) -> dict[str, list[int]]:
    """The steps of each tag that has pictures."""
    if how == "tensorboard":
        return image_steps(events(log_dir))
    fs, path = fsspec.core.url_to_fs(f"{log_dir}/cnnlog/pictures")
    steps: dict[str, list[int]] = {}
    for name in sorted(fs.find(path)):
        if name.endswith(".png"):
            assert Image.open(io.BytesIO(fs.cat_file(name))).size[0] > 8
            tag, _, file = name.split("/cnnlog/pictures/")[1].rpartition("/")
            steps.setdefault(tag, []).append(int(file[len("step-") : -len(".png")]))
    return steps


@pytest.mark.parametrize("how", LOGGERS)
def test_a_training_into_it_is_stored_read_resumed_and_guarded(
    how: str, root: str, plain: list[bytes], tmp_path: Path
) -> None:
    def logger(version: str = "v0") -> Any:
        return LOGGERS[how](f"{root}/{how}", name="run", version=version)

    folder = f"{root}/{how}/run/v0"
    assert train(logger(), tmp_path / "a", watched()) == plain
    here = tmp_path / "local"
    assert train(TensorBoardLogger(here, name="", version=""), tmp_path / "b", watched()) == plain
    run, local = cnnlog.open_run(folder), cnnlog.open_run(here)
    assert locate(run.path) == locate(f"{folder}/cnnlog")
    assert run.steps == local.steps == (0, 1, 2)
    for step in run.steps:
        for kind in KINDS:
            for layer, array in getattr(local.record(step), kind).items():
                np.testing.assert_array_equal(getattr(run.record(step), kind)[layer], array)
    assert drawn_steps(how, folder)["filters/00_net.0"] == [0, 1, 2]

    with pytest.raises(ValueError, match=r"already holds a run of 3 snapshots.*expected a new folder"):
        train(logger(), tmp_path / "c", watched())
    assert RunStore.open(f"{folder}/cnnlog").manifest.run_id == run.manifest.run_id

    checkpoint = str(tmp_path / "a" / "epoch=1.ckpt")
    train(logger(), tmp_path / "d", watched(), epochs=4, ckpt_path=checkpoint)
    train(logger("v1"), tmp_path / "e", watched(), epochs=3, ckpt_path=checkpoint)
    assert cnnlog.open_run(folder).steps == (0, 1, 2, 3, 4)
    steps = drawn_steps(how, folder)
    assert {"filters/00_net.0", "feature_maps/01_net.3", "filters_change/00_net.0"} <= steps.keys()
    assert steps["filters/00_net.0"] == [0, 1, 2, 3, 4]
    assert all(a < b for values in steps.values() for a, b in pairwise(values))
    carried = RunStore.open(f"{root}/{how}/run/v1/cnnlog")
    assert (carried.manifest.carried_from, carried.steps) == (f"{folder}/cnnlog", [0, 3])

    compared = cnnlog.compare(folder, str(here))
    assert [layer.name for layer in compared.layers] == ["net.0", "net.3", "head"]
    for layer in compared.layers[:2]:
        for kind in KINDS:
            difference = compared.difference(layer, kind, 2)
            assert difference is not None
            assert not difference.any()


def test_what_another_machine_has_written_is_seen(s3: str) -> None:
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    store = RunStore(f"{s3}/shared/v0/cnnlog", manifest())
    store.create()
    store.write_record(record(0))
    parent = f"{s3}/shared"
    other.pipe_file(f"{parent}/more/notes.txt", b"nothing of ours")
    assert cnnlog.open_run(parent).steps == (0,)
    step = other.cat_file(f"{store.folder}/step-00000000.safetensors")
    other.pipe_file(f"{store.folder}/step-00000001.safetensors", step)
    assert store.steps == [0, 1]
    assert cnnlog.open_run(parent).steps == (0, 1)
    other.pipe_file(f"{s3}/shared/more/v1/cnnlog/manifest.json", manifest().to_json().encode())
    with pytest.raises(ValueError, match="holds 2 runs"):
        cnnlog.open_run(parent)
    with pytest.raises(FileExistsError):
        RunStore(f"{s3}/shared/more/v1/cnnlog", manifest()).create()


# --- a store that goes away, with errors of its own


class EndpointError(Exception):
    """No OSError, as botocore's are not."""


class Outage(L.Callback):
    """From the beginning of an epoch on nothing can be written or read; from 0 on, before the monitors begin."""

    def __init__(self, epoch: int, patch: pytest.MonkeyPatch, folder: str = "") -> None:
        self.epoch, self.patch, self.folder = epoch, patch, folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.epoch == 0:
            self.begin()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if 0 < self.epoch == trainer.current_epoch:
            deadline = time.monotonic() + 60
            while len(RunStore.open(self.folder).steps) <= self.epoch:  # the last snapshot may still be on its way
                assert time.monotonic() < deadline
                time.sleep(0.01)
            self.begin()

    def begin(self) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise EndpointError("could not connect")

        for name in ("pipe_file", "cat_file"):
            self.patch.setattr(MemoryFileSystem, name, refuse)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_outage_costs_snapshots_and_no_training(
    epoch: int, memory: str, plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CSVLogger(memory, name="outage", version=f"v{epoch}")
    folder = f"{memory}/outage/v{epoch}/cnnlog"
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not connect"):
        assert train(logger, tmp_path, [Outage(epoch, patch, folder), *watched()]) == plain
    assert RunStore.exists(folder) == bool(epoch)
    assert epoch == 0 or RunStore.open(folder).steps == [0, 1]


def test_asked_to_stop_for_an_outage_the_training_says_what_was_not_written(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitors = [FilterMonitor(on_error="raise"), FeatureMapMonitor(probe(), on_error="raise")]
    logger = CSVLogger(memory, name="outage", version="raise")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="could not connect") as caught:
        train(logger, tmp_path, [Outage(0, patch), *monitors])
    assert isinstance(caught.value.__cause__, EndpointError)
    assert f"{memory}/outage/raise" in str(caught.value)


# --- one folder, one run


def test_of_several_that_claim_a_folder_at_once_one_has_it(root: str) -> None:
    if "mode" not in inspect.signature(fsspec.core.url_to_fs(root)[0].pipe_file).parameters:
        pytest.skip("this fsspec cannot write a file only where there is none")
    for number in range(5):
        folder, gate = f"{root}/claims/{number}/cnnlog", threading.Barrier(4)
        won: list[str] = []

        def claim(folder: str = folder, gate: threading.Barrier = gate, won: list[str] = won) -> None:
            store = RunStore(folder, manifest())
            gate.wait()
            try:
                store.create()
            except FileExistsError:
                return
            won.append(store.manifest.run_id)

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [RunStore.open(folder).manifest.run_id]
