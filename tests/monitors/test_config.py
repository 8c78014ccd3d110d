"""Configuration files: LightningCLI's YAML and Hydra's `_target_` reach every argument of the public face."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
import yaml
from PIL import Image
from support.places import EXAMPLES
from support.training import TinyCNN, fit, trainer
from torch import nn

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, watch
from cnnlog.runs.finding import open_run

pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse: pip install cnnlog[cli]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning's use of jsonargparse

EXAMPLE = EXAMPLES / "cli"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_epochs=2"]

# Every argument of the public face that plain values can give, each with another value than its default.
FILTERS: dict[str, Any] = {
    "layers": ["net.0", "torch.nn.Conv2d"],
    "every_n_epochs": 3,
    "at_steps": [2, 9],
    "max_filters": 7,
    "view": "mean",
    "max_slices": 5,
    "value_range": "layer",
    "cmap": "viridis",
    "width": 200,
    "change": False,
    "histograms": True,
    "probe": "shark.png",
    "on_error": "raise",
    "through": "net",
    "weights": "ema",
}
MAPS: dict[str, Any] = {
    **{key: value for key, value in FILTERS.items() if key not in ("max_filters", "view", "max_slices")},
    "max_maps": 6,
    "channels_last": True,
}
STEPS = {"every_n_train_steps": 4}  # instead of every_n_epochs
IMAGES: dict[str, Any] = {
    "images": ["shark.png", "shark.png"],
    "size": [24, 20],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "value_range": [0, 200],
}
CHART: dict[str, Any] = {"size": 48, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
DATASET: dict[str, Any] = {
    "dataset": {"class_path": "test_config.Squares", "init_args": {"size": 20}},
    "indices": [1, 2],
}


class Squares:
    """A data set that a configuration file can name."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((3, self.size, self.size), index / 8, np.float32)


def arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_the_lists_above_are_complete() -> None:
    assert FILTERS.keys() | STEPS.keys() == arguments(FilterMonitor)
    assert MAPS.keys() | STEPS.keys() == arguments(FeatureMapMonitor)
    assert IMAGES.keys() == arguments(Probe.from_images) - {"transform"}  # size, mean and std do what it does
    assert CHART.keys() == arguments(Probe.chart)
    assert DATASET.keys() == arguments(Probe.from_dataset)
    for monitor, values in ((FilterMonitor, FILTERS), (FeatureMapMonitor, MAPS)):
        parameters = inspect.signature(monitor).parameters
        assert not [key for key, value in values.items() if parameters[key].default == value]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])  # LightningCLI warns of pytest's own arguments
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save("shark.png")
    return tmp_path


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("cli_example", EXAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where jsonargparse looks for what annotations name
    spec.loader.exec_module(module)
    return module


def configured(example: Any, *callbacks: Mapping[str, Any]) -> list[Any]:
    """The monitors that LightningCLI makes of a YAML file."""
    written = {"trainer": {"logger": False, "callbacks": list(callbacks)}}
    Path("config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    made = example.main(["--config", "config.yaml"], run=False)
    return [callback for callback in made.trainer.callbacks if isinstance(callback, (FilterMonitor, FeatureMapMonitor))]


def plainly(plan: Any) -> dict[str, Any]:
    """A monitor's plan as the arguments that make it."""
    look = {"view": plan.look.view, "max_slices": plan.look.slices}
    common = ("value_range", "cmap", "width", "change", "histograms")
    return {
        **look,
        **{key: getattr(plan.look, key) for key in common},
        **{"layers": plan.layers, "on_error": plan.on_error, "through": plan.through, "weights": plan.weights},
        **{"shown": plan.look.shown, "every": plan.every, "unit": plan.unit, "probe": plan.probe.fingerprint},
    }


# --- LightningCLI


def test_the_example_trains_and_is_watched(example: Any, folder: Path) -> None:
    small = ["--data.images=16", "--data.batch_size=8", "--model.channels=4"]
    example.main(["fit", "--config", str(EXAMPLE / "config.yaml"), *QUIET, *small])
    run = open_run(folder / "lightning_logs" / "cli" / "version_0")
    assert run.steps == (0, 1, 2)
    assert run.layers == ("conv1", "conv2")
    assert run.manifest.probe["names"] == ["chart"]
    assert run.feature_maps("conv2", 2).shape == (1, 8, 16, 16)
    assert run.numbers("weight_change", "conv1", 2) > 0


def test_every_argument_is_reachable_from_yaml(example: Any) -> None:
    made = configured(
        example,
        {"class_path": "cnnlog.FilterMonitor", "init_args": FILTERS},
        {"class_path": "cnnlog.FeatureMapMonitor", "init_args": MAPS},
    )
    layers: list[Any] = ["net.0", nn.Conv2d]
    assert [plainly(monitor.plan) for monitor in made] == [
        plainly(FilterMonitor(**{**FILTERS, "layers": layers}).plan),
        plainly(FeatureMapMonitor(**{**MAPS, "layers": layers}).plan),
    ]


@pytest.mark.parametrize("name", ["FilterMonitor", "FeatureMapMonitor"])
def test_steps_are_reachable_from_yaml(name: str, example: Any) -> None:
    (made,) = configured(example, {"class_path": f"cnnlog.{name}", "init_args": {**STEPS, "width": None}})
    assert (made.plan.unit, made.plan.every, made.plan.look.width) == ("step", 4, None)


@pytest.mark.parametrize(
    ("how", "values"), [("from_images", IMAGES), ("chart", CHART), ("from_dataset", DATASET)], ids=lambda v: str(v)[:11]
)
def test_every_argument_of_a_probe_is_reachable_from_yaml(how: str, values: dict[str, Any], example: Any) -> None:
    probe = {"class_path": f"cnnlog.Probe.{how}", "init_args": values}
    (made,) = configured(example, {"class_path": "cnnlog.FeatureMapMonitor", "init_args": {"probe": probe}})
    direct = {**values, "dataset": Squares(20)} if how == "from_dataset" else values
    assert made.plan.probe.fingerprint == getattr(Probe, how)(**direct).fingerprint


def test_print_config_prints_what_configures_the_same(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        example.main(["fit", "--config", str(EXAMPLE / "config.yaml"), "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    filters, maps = printed["trainer"]["callbacks"]
    assert filters["class_path"].endswith("FilterMonitor")
    assert filters["init_args"].keys() == arguments(FilterMonitor)
    assert maps["init_args"].keys() == arguments(FeatureMapMonitor)
    assert maps["init_args"]["probe"]["init_args"]["size"] == 32
    again = configured(example, filters, maps)
    original = yaml.safe_load((EXAMPLE / "config.yaml").read_text())["trainer"]["callbacks"]
    assert again[1].plan.probe.fingerprint == Probe.chart(32).fingerprint
    assert [monitor.plan.look for monitor in again] == [m.plan.look for m in configured(example, *original)]


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        ({"view": "colour"}, "colour"),
        ({"max_filters": "many"}, "many"),
        ({"max_filter": 3}, "max_filter"),
        ({"on_error": "ignore"}, "ignore"),
        ({"layers": {"a": 1}}, "layers"),
        ({"width": 3}, "expected width to be a whole number from 16 on"),
        ({"probe": "no.png"}, "no probe image at 'no.png'"),
    ],
)
def test_wrong_values_are_named(
    init_args: dict[str, Any], message: str, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError, FileNotFoundError)) as stopped:
        configured(example, {"class_path": "cnnlog.FilterMonitor", "init_args": init_args})
    said = capsys.readouterr().err + str(stopped.value)
    assert message in said


# --- Hydra: `_target_` is imported and called with what stands beside it, nested ones first


class Listed(Sequence[Any]):
    """A sequence that is no list, as OmegaConf's `ListConfig` is."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def instantiate(config: Any) -> Any:
    if isinstance(config, list):
        return Listed([instantiate(item) for item in config])
    if not isinstance(config, dict):
        return config
    values = {key: instantiate(value) for key, value in config.items()}
    if "_target_" not in values:
        return values
    found: Any = cnnlog
    for part in values.pop("_target_").split(".")[1:]:
        found = getattr(found, part)
    return found(**values)


HYDRA = """
- _target_: cnnlog.FilterMonitor
  layers: [net.0, "net.3*"]
  max_filters: 4
- _target_: cnnlog.FeatureMapMonitor
  layers: net.*
  probe: {_target_: cnnlog.Probe.from_images, images: [shark.png], size: [16, 16], mean: [0.5], std: [1]}
"""


def test_hydras_targets_make_monitors_that_watch(folder: Path) -> None:
    fit(trainer(folder, list(instantiate(yaml.safe_load(HYDRA))), max_epochs=1), TinyCNN())
    run = open_run(folder / "run" / "v0")
    assert run.steps == (0, 1)
    assert run.filters("net.0", 1).shape[0] == 4
    assert run.manifest.probe["shape"] == [1, 3, 16, 16]
    assert run.manifest.settings["filters"]["layers"] == ["net.0", "net.3*"]


def test_hydras_target_makes_a_probe_of_every_plain_argument() -> None:
    for how, values in (("from_images", IMAGES), ("chart", CHART)):
        made = instantiate({"_target_": f"cnnlog.Probe.{how}", **values})
        assert made.fingerprint == getattr(Probe, how)(**values).fingerprint


def test_hydras_target_watches_a_loop(folder: Path) -> None:
    config = {"_target_": "cnnlog.watch", "log_dir": "run", "layers": ["net.0"], "probe": "shark.png", "max_maps": 2}
    with instantiate({**config, "model": TinyCNN()}) as watcher:
        watcher.snapshot(0)
    assert open_run(folder / "run").feature_maps("net.0", 0).shape[1] == 2
    assert config.keys() - {"_target_"} < arguments(watch)


def test_hydra_itself(folder: Path) -> None:
    hydra = pytest.importorskip("hydra", reason="hydra is not installed")
    omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    callbacks = [hydra.utils.instantiate(item) for item in omegaconf.OmegaConf.create(yaml.safe_load(HYDRA))]
    fit(trainer(folder, callbacks, max_epochs=1), TinyCNN())
    assert open_run(folder / "run" / "v0").steps == (0, 1)
