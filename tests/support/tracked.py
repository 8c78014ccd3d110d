"""A watched training with one tracker, and what that has of it: `python tests/support/tracked.py wandb logger FOLDER`.

`logger` fits with the tracker's Lightning logger, `handle` gives the tracker's own handle to `watch`.

A process of its own, for trackers patch what they find. Prints JSON on its last line.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, WandbLogger
from PIL import Image
from support.training import TinyCNN, fit, loader, ours, probe, trainer

from cnnlog import FeatureMapMonitor, FilterMonitor, watch

EPOCHS = 6  # more than the 5 that ClearML keeps
Seen = dict[str, dict[int, Any]]  # tag -> step -> what was there


def pixels(data: bytes | Image.Image) -> str:
    """A digest of a picture's colours, whatever it is stored as."""
    with data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)) as picture:
        return hashlib.sha256(f"{picture.size}".encode() + picture.convert("RGB").tobytes()).hexdigest()


class Wandb:
    package = "wandb"

    def __init__(self, folder: Path, how: str) -> None:
        import wandb

        os.environ["WANDB_SILENT"] = "true"
        if how == "logger":
            self.logger = WandbLogger(offline=True, save_dir=folder, project="tests")
        self.handle = self.logger.experiment if how == "logger" else wandb.init(mode="offline", dir=folder)
        self.folder = Path(self.handle.dir)

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        import wandb
        from wandb.proto import wandb_internal_pb2

        self.handle.finish()
        wandb.teardown()  # else its other process may still have the end of the file to write
        (file,) = self.folder.parent.glob("*.wandb")
        images: Seen = {}
        scalars: Seen = {}
        axes: dict[str, str] = {}
        for data in self._records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            metric = record.metric
            if metric.name or metric.glob_name:
                axes[metric.name or metric.glob_name] = metric.step_metric
            row: dict[str, Any] = {}
            for item in record.history.item:  # a value that is a dict comes as one item for each of its keys
                *parents, last = [item.key] if item.key else item.nested_key
                place = row
                for part in parents:
                    place = place.setdefault(part, {})
                place[last] = json.loads(item.value_json)
            if "cnnlog/epoch" in row:
                step = row.pop("cnnlog/epoch")
                for tag, value in row.items():
                    if isinstance(value, dict) and value.get("_type") == "image-file":
                        images.setdefault(tag, {})[step] = pixels((self.folder / value["path"]).read_bytes())
                    elif isinstance(value, (int, float)) and not tag.startswith("_"):
                        scalars.setdefault(tag, {})[step] = float(value)
        return images, scalars, {"axes": axes}

    @staticmethod
    def _records(data: bytes) -> Iterator[bytes]:
        """LevelDB's log format: blocks of 32 KiB, parts with sum (4), length (2), kind (1: whole, 4: last)."""
        at, whole = 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                yield whole
                whole = b""


class MLflow:
    package = "mlflow"

    def __init__(self, folder: Path, how: str) -> None:
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{folder}/runs.db"
        client = MlflowClient(self.uri)
        experiment = client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
        self.handle = (client, client.create_run(experiment).info.run_id)
        self.logger = MLFlowLogger("tests", tracking_uri=self.uri, run_id=self.handle[1])

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        from mlflow import MlflowClient

        from cnnlog.trackers.mlflow import tag_of

        client, run = MlflowClient(self.uri), self.handle[1]
        images: Seen = {}
        for artifact in client.list_artifacts(run, "images"):
            name, *parts = Path(artifact.path).stem.split("+")
            facts = dict(zip(parts[::2], parts[1::2], strict=False))
            if artifact.path.endswith(".png"):
                file = client.download_artifacts(run, artifact.path)
                tag = tag_of(name.replace("~", "/"))
                images.setdefault(tag, {})[int(facts["step"])] = pixels(Path(file).read_bytes())
        scalars = {
            tag_of(key): {metric.step: metric.value for metric in client.get_metric_history(run, key)}
            for key in client.get_run(run).data.metrics
        }
        text = Path(client.download_artifacts(run, "cnnlog/layers.md")).read_text(encoding="utf-8")
        return images, scalars, {"text": text, "grid": client.get_run(run).data.tags.get("mlflow.loggedImages")}


class Comet:
    package = "comet_ml"

    def __init__(self, folder: Path, how: str) -> None:
        import comet_ml

        if how == "logger":
            self.logger = CometLogger(online=False, offline_directory=str(folder))  # which records nothing, so:
        self.handle = comet_ml.OfflineExperiment(
            offline_directory=str(folder / "comet"), disabled=False, log_env_details=False, log_code=False
        )
        if how == "logger":
            self.logger._experiment = self.handle
        self.folder = folder / "comet"

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        self.handle.end()
        images: Seen = {}
        scalars: Seen = {}
        endings: set[str] = set()
        (path,) = self.folder.glob("*.zip")
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("messages.json").splitlines():
                payload = json.loads(line)["payload"]
                facts = payload.get("additional_params") or {}
                metric = payload.get("metric") or {}
                if payload.get("upload_type") == "visualization":
                    endings.add(facts["extension"])
                    images.setdefault(facts["figName"].removesuffix(".png"), {})[facts["step"]] = pixels(
                        archive.read(payload["file_path"])
                    )
                elif "/" in metric.get("metricName", ""):
                    scalars.setdefault(metric["metricName"], {})[metric["step"]] = metric["metricValue"]
        return images, scalars, {"endings": sorted(endings)}


class Aim:
    package = "aim"

    def __init__(self, folder: Path, how: str) -> None:
        import aim
        from aim.pytorch_lightning import AimLogger

        self.quiet = {"system_tracking_interval": None, "capture_terminal_logs": False, "log_system_params": False}
        self.folder = str(folder / "aim")
        if how == "logger":
            self.logger = AimLogger(repo=self.folder, **self.quiet)
        self.handle = self.logger.experiment if how == "logger" else aim.Run(repo=self.folder, **self.quiet)
        self.run = self.handle.hash

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        import aim

        run = aim.Run(self.run, repo=self.folder, **self.quiet)  # read-only, Aim shows nothing before its own index
        images: Seen = {}
        epochs: Seen = {}
        for name, context, _ in run.iter_sequence_info_by_type(("aim.image", "list(aim.image)")):
            sequence = run.get_image_sequence(name, context)
            steps, (values, at, _) = sequence.data.items_list()
            images[name] = {step: pixels(value.to_pil_image()) for step, value in zip(steps, values, strict=True)}
            epochs[name] = dict(zip(steps, at, strict=True))
        scalars: Seen = {}
        for metric in run.metrics():
            steps, (values, *_) = metric.data.items_list()
            scalars[metric.name] = dict(zip(steps, map(float, values), strict=True))
        run.close()
        return images, scalars, {"epochs": epochs}


class ClearML:
    package = "clearml"

    def __init__(self, folder: Path, how: str) -> None:
        os.environ["CLEARML_CACHE_DIR"] = str(folder / "clearml")
        from clearml import Task

        Task.set_offline(True)
        quiet: dict[str, Any] = {
            "auto_connect_arg_parser": False,
            "auto_resource_monitoring": False,
            "auto_connect_streams": False,
        }
        patched = ("matplotlib", "tensorboard", "pytorch", "joblib", "jsonargparse")
        # `detect_repository` reads every package that is installed
        frameworks = dict.fromkeys((*patched, "detect_repository"), False)
        self.handle: Any = Task.init("tests", "tracked", auto_connect_frameworks=frameworks, **quiet)
        self.logger = CSVLogger(folder, name="csv", version="v0")  # the task is found without a logger of its own

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        self.handle.flush(wait_for_uploads=True)
        folder = Path(self.handle.get_offline_mode_folder())
        self.handle.close()
        images: Seen = {}
        scalars: Seen = {}
        texts: dict[str, str] = {}
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            for event in json.loads(line):
                tag = "/".join(dict.fromkeys((event["metric"], event["variant"])))
                if event["type"] == "training_stats_scalar":
                    scalars.setdefault(tag, {})[event["iter"]] = event["value"]
                elif event["type"] == "training_debug_image" and event["url"].endswith(".png"):
                    images.setdefault(tag, {})[event["iter"]] = pixels(Path(event["url"]).read_bytes())
                elif event["type"] == "training_debug_image":
                    texts[tag] = Path(event["url"]).read_text(encoding="utf-8")
        return images, scalars, {"text": texts.get("layers")}


class Trackio:
    """Without a server. Lightning has no logger for it: `logger` is one that follows the model of its loggers."""

    package = "trackio"

    def __init__(self, folder: Path, how: str) -> None:
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")  # read when Trackio is imported
        import trackio

        self.handle = trackio.init(project="tests", name="tracked", embed=False, auto_log_cpu=False, auto_log_gpu=False)
        self.handle.log({"mine": 1.0})  # step 0
        if how == "logger":
            self.logger = Following(folder, self.handle)

    def read(self) -> tuple[Seen, Seen, dict[str, Any]]:
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import MEDIA_DIR

        self.handle.log({"mine": 2.0})
        self.handle.finish()
        images: Seen = {}
        scalars: Seen = {}
        captions: set[str] = set()
        texts: dict[str, str] = {}
        mine: list[int] = []
        for row in SQLiteStorage.get_logs("tests", "tracked"):
            for tag, value in row.items():
                kind = value.get("_type") if isinstance(value, dict) else None
                if kind == "trackio.image":
                    images.setdefault(tag, {})[row["step"]] = pixels((MEDIA_DIR / value["file_path"]).read_bytes())
                    captions.add(value["caption"])
                elif kind == "trackio.markdown":
                    texts[tag] = value["_value"]
                elif tag == "mine":
                    mine.append(row["step"])
                elif "/" in tag and kind is None:
                    scalars.setdefault(tag, {})[row["step"]] = value
        return images, scalars, {"text": texts.get("layers"), "mine": mine, "captions": sorted(captions)}


class Following(Logger):
    """What somebody writes who wants a tracker under Lightning that has no logger: an `experiment`, and numbers."""

    name, version = "run", "v0"

    def __init__(self, folder: Path, experiment: Any) -> None:
        super().__init__()
        self.experiment, self.folder = experiment, folder

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


TRACKERS: dict[str, Any] = {
    "wandb": Wandb,
    "mlflow": MLflow,
    "comet": Comet,
    "aim": Aim,
    "clearml": ClearML,
    "trackio": Trackio,
}


def fitted(tracker: Any, folder: Path, *, beside: bool) -> None:
    """A Trainer with the tracker's logger, and a CSVLogger, beside which pictures become files."""
    more = [CSVLogger(folder, name="csv", version="v0")] if beside else []
    callbacks = [FilterMonitor(histograms=True), FeatureMapMonitor(probe())]
    fit(trainer(folder, callbacks, logger=[tracker.logger, *more], max_epochs=EPOCHS), TinyCNN())


def looped(tracker: Any, folder: Path) -> None:
    """A loop of one's own with the tracker's handle, and an event file beside it."""
    module = TinyCNN()
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-2)
    with watch(module, probe(), folder / "loop", histograms=True, trackers=[tracker.handle, tracker.handle]) as watcher:
        watcher.snapshot(0)
        for epoch in range(EPOCHS):
            for images, labels in loader():
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(module(images), labels).backward()
                optimiser.step()
            watcher.snapshot(epoch + 1)


def main(name: str, how: str, folder: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    tracker = TRACKERS[name](folder, how)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if how == "handle":
            looped(tracker, folder)
        else:
            fitted(tracker, folder, beside=name != "clearml")
    warned = [str(w.message) for w in caught if ours(w)]
    images, scalars, more = tracker.read()
    print()
    print(json.dumps({"images": images, "scalars": scalars, "warned": warned, **more}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
