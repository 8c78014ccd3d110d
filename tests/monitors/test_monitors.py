"""The monitors in real trainings of a small CNN."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shlex
import shutil
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.tuner.tuning import Tuner
from PIL import Image
from support.training import TinyCNN, events, fit, image_steps, loader, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor
from cnnlog.capture.capture import capture
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import Snapshot

LAYERS = ("00_net.0", "01_net.3")


def monitors(**more: Any) -> list[L.Callback]:
    return [FilterMonitor(**more), FeatureMapMonitor(probe(), **more)]


def store(folder: Path) -> RunStore:
    return RunStore.open(str(folder / "run" / "v0" / "cnnlog"))


# --- what a plain run leaves


def test_every_epoch_is_in_the_event_file_and_in_the_store(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors()), TinyCNN())
    steps = image_steps(events(tmp_path / "run" / "v0"))
    for kind in ("filters", "feature_maps"):
        for layer in LAYERS:
            assert steps.pop(f"{kind}/{layer}") == [0, 1, 2, 3]
            assert steps.pop(f"{kind}_change/{layer}") == [1, 2, 3]
            assert steps.pop(f"{kind}_strip/{layer}") == [3]
    assert steps.pop("probe") == [0]
    assert not steps
    assert store(tmp_path).steps == [0, 1, 2, 3]


def test_numbers_stand_beside_the_pictures(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors()), TinyCNN())
    found = events(tmp_path / "run" / "v0")
    for layer in LAYERS:
        every = {"function_change": 4, "cka_positions": 4, "weight_change": 4, "filter_angle": 4, "update_ratio": 3}
        for number, steps in every.items():
            values = [event.value for event in found.Scalars(f"numbers/{number}/{layer}")]
            assert len(values) == steps
            assert all(np.isfinite(values))
        for number in ("weight_change", "filter_angle", "function_change"):
            change = [event.value for event in found.Scalars(f"numbers/{number}/{layer}")]
            assert change[0] == 0 < change[1] < change[3]
        assert found.Scalars(f"numbers/cka_positions/{layer}")[0].value == 1


def test_the_stored_filters_are_the_weights_of_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = TinyCNN()
    first, second = module.get_parameter("net.0.weight"), module.get_parameter("net.3.weight")
    before = first.detach().clone().numpy()
    fit(trainer(tmp_path, monitors()), module)
    run = store(tmp_path)
    np.testing.assert_array_equal(run.read_record(0).filters["net.0"], before)
    np.testing.assert_array_equal(run.read_record(3).filters["net.0"], first.detach().numpy())
    latest, step = run.read_weights("latest")
    assert step == 3
    np.testing.assert_array_equal(latest["net.3"], second.detach().numpy())


def test_the_stored_maps_are_the_named_layers_own_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = TinyCNN()
    fit(trainer(tmp_path, monitors()), module)
    with torch.no_grad():
        weight, bias = module.get_parameter("net.0.weight"), module.get_parameter("net.0.bias")
        expected = nn.functional.conv2d(probe().tensor, weight, bias, padding=2)
    np.testing.assert_array_equal(store(tmp_path).read_record(3).feature_maps["net.0"], expected.numpy())


@pytest.mark.filterwarnings("ignore:cnnlog. no channel:UserWarning")
def test_pictures_say_what_their_range_is(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FilterMonitor()], max_epochs=1), TinyCNN(lr=3.0))
    last = events(tmp_path / "run" / "v0").Images("filters/00_net.0")[-1]
    with Image.open(io.BytesIO(last.encoded_image_string)) as picture:
        facts = json.loads(picture.text["cnnlog"])
    doubled = store(tmp_path).read_record(1).ranges["filters"]["net.0"]["doubled"]
    assert facts["layer"] == "net.0"
    assert facts["doubled"] == {str(i): int(n) for i, n in enumerate(doubled) if n}
    assert facts["doubled"], "with a learning rate of 3 some filter outgrows its range"


def test_several_probe_images_get_a_tag_each(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FeatureMapMonitor(probe(2))], max_epochs=1), TinyCNN())
    steps = image_steps(events(tmp_path / "run" / "v0"))
    assert steps["feature_maps/00_net.0/image0"] == steps["feature_maps/00_net.0/image1"] == [0, 1]


def test_histograms_and_change_can_be_switched(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(histograms=True, change=False), max_epochs=1), TinyCNN())
    found = events(tmp_path / "run" / "v0")
    assert not any("_change" in tag for tag in found.Tags()["images"])
    tensors = found.Tags()["tensors"]
    for kind in ("filters", "feature_maps"):
        assert f"histograms_{kind}/00_net.0" in tensors


def test_the_layer_table_is_logged_as_text(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(), max_epochs=1), TinyCNN())
    text = events(tmp_path / "run" / "v0").Tensors("layers")[0].tensor_proto.string_val[0].decode()
    assert "| watched | `net.0` | Conv2d | 6x16x16 | 456 |" in text


def test_one_line_says_what_is_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        fit(trainer(Path("my runs"), monitors()), TinyCNN())
    (line,) = [record.message for record in caplog.records if record.message.startswith("cnnlog watches")]
    for part in ("net.0", "net.3", "[1, 3, 16, 16]", "every epoch", "MB stored"):
        assert part in line
    words = shlex.split(line.split("view: ")[1])  # as a shell reads what is pasted into it
    assert words[:2] == ["tensorboard", "--logdir"]
    assert Path(words[2]).resolve() == (tmp_path / "my runs" / "run" / "v0").resolve()


# --- schedules


def test_every_n_epochs(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(every_n_epochs=2), max_epochs=5), TinyCNN())
    assert store(tmp_path).steps == [0, 2, 4, 5]  # the last state, too


def test_the_two_monitors_may_have_different_intervals(tmp_path: Path) -> None:
    callbacks = [FilterMonitor(), FeatureMapMonitor(probe(), every_n_epochs=2)]
    fit(trainer(tmp_path, callbacks), TinyCNN())
    run = store(tmp_path)
    assert run.steps == [0, 1, 2, 3]
    assert [bool(run.read_record(step).feature_maps) for step in run.steps] == [
        True,
        False,
        True,
        True,
    ]  # the last is whole


def test_every_n_train_steps_counts_optimiser_steps_under_accumulation(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(every_n_train_steps=3), accumulate_grad_batches=2, max_epochs=4), TinyCNN())
    assert store(tmp_path).steps == [0, 3, 6, 8]  # 4 batches an epoch, 2 optimiser steps


def test_max_steps_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(), max_epochs=-1, max_steps=6), TinyCNN())
    run = store(tmp_path)
    assert run.steps == [0, 1, 2]
    assert run.read_record(2).global_step == 6


class TwoOptimisers(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:  # type: ignore[override]  # it takes the steps itself
        both = self.optimizers()
        assert isinstance(both, list)
        for optimiser in both:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimiser.zero_grad()
            self.manual_backward(loss)
            optimiser.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=1e-2), torch.optim.SGD(self.head.parameters(), lr=1e-2)


@pytest.mark.parametrize(("schedule", "steps"), [({}, [0, 1, 2]), ({"every_n_train_steps": 5}, [0, 6, 10, 16])])
def test_manual_optimisation_with_two_optimisers(schedule: dict[str, int], steps: list[int], tmp_path: Path) -> None:
    fit(trainer(tmp_path, monitors(**schedule), max_epochs=2), TwoOptimisers())
    assert store(tmp_path).steps == steps


# --- ways of training


def test_fast_dev_run_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(trainer(tmp_path, monitors(), fast_dev_run=True), TinyCNN(), validate=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_logger_each_run_gets_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        fit(trainer(tmp_path, monitors(), logger=False, max_epochs=1), TinyCNN())
    for number in (0, 1):
        assert RunStore.open(str(tmp_path / "cnnlog_logs" / f"version_{number}" / "cnnlog")).steps == [0, 1]


def test_several_tensorboard_loggers_get_the_same_pictures(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path / name, name="run", version="v0") for name in "ab"]
    fit(trainer(tmp_path, monitors(), logger=loggers, max_epochs=1), TinyCNN())
    first, second = (image_steps(events(tmp_path / name / "run" / "v0")) for name in "ab")
    assert first == second
    assert first["filters/00_net.0"] == [0, 1]
    assert RunStore.open(str(tmp_path / "a" / "run" / "v0" / "cnnlog")).steps == [0, 1]


def test_a_logger_without_pictures_is_named_once(tmp_path: Path) -> None:
    class Numbers(Logger):
        name, version = "run", "v0"

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            pass

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

    with pytest.warns(UserWarning, match=r"cnnlog: Numbers is given no pictures.*store.*run/v0/cnnlog") as caught:
        fit(trainer(tmp_path, monitors(), logger=Numbers()), TinyCNN())
    assert len([w for w in caught if "Numbers" in str(w.message)]) == 1
    assert not (tmp_path / "run" / "v0" / "cnnlog" / "pictures").exists()
    assert store(tmp_path).steps == [0, 1, 2, 3]


def test_frozen_parts_are_watched_and_stay_frozen(tmp_path: Path) -> None:
    module = TinyCNN()
    module.net[0].requires_grad_(False).eval()
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start.*")
    fit(trainer(tmp_path, monitors()), module)
    drift = store(tmp_path).read_record(3).numbers["weight_change"]
    assert drift["net.0"].max() == 0 < drift["net.3"].max()
    assert not module.net[0].training


def test_the_first_validation_image_is_the_default_probe(tmp_path: Path) -> None:
    fit(trainer(tmp_path, [FeatureMapMonitor()], max_epochs=1), TinyCNN(), validate=True)
    run = store(tmp_path)
    assert run.manifest.probe["names"] == ["TensorDataset[0]"]
    np.testing.assert_array_equal(run.read_probe()[0], loader().dataset[0][0].numpy())


def test_a_module_without_forward_is_run_through_its_part(tmp_path: Path) -> None:
    class NoForward(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(trainer(tmp_path, monitors(), max_epochs=1), NoForward())
    assert store(tmp_path).read_record(1).feature_maps["net.0"].shape == (1, 4, 14, 14)


def test_arrays_that_arrive_late_are_waited_for_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_in: list[str] = []

    def late(*args: Any, **options: Any) -> Snapshot:
        """As from CUDA: the arrays are there, and their values come later."""
        assert options.pop("wait") is False, "the training thread is not held up"
        seen = capture(*args, **options)
        copies = {id(array): array.copy() for array in (*seen.filters.values(), *seen.feature_maps.values())}
        for array in (*seen.filters.values(), *seen.feature_maps.values()):
            array.fill(np.nan)

        def ready() -> None:
            time.sleep(0.05)
            waited_in.append(threading.current_thread().name)
            for array in (*seen.filters.values(), *seen.feature_maps.values()):
                array[:] = copies[id(array)]

        return dataclasses.replace(seen, ready=ready)

    monkeypatch.setattr("cnnlog.monitors.live_run.capture", late)
    torch.manual_seed(0)
    module = TinyCNN()
    fit(trainer(tmp_path, monitors()), module)
    assert waited_in == ["cnnlog"] * 4
    run = store(tmp_path)
    np.testing.assert_array_equal(
        run.read_record(3).filters["net.0"], module.get_parameter("net.0.weight").detach().numpy()
    )
    assert all(np.isfinite(run.read_record(step).feature_maps["net.0"]).all() for step in range(4))


# --- resume


def checkpointed(tmp_path: Path, epochs: int, *, version: str = "v0", ckpt_path: Path | None = None) -> Path:
    """Train on to `epochs` with a checkpoint after each validation; the path of the last one."""
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", "{epoch}", save_top_k=-1)
    logger = TensorBoardLogger(tmp_path, name="run", version=version)
    callbacks = [*monitors(), checkpoint]
    torch.manual_seed(0)
    run = trainer(tmp_path, callbacks, max_epochs=epochs, logger=logger, enable_checkpointing=True)
    fit(run, TinyCNN(), validate=True, ckpt_path=ckpt_path)
    return tmp_path / "checkpoints" / f"epoch={epochs - 1}.ckpt"


def test_a_resume_in_the_same_folder_goes_on(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, 2)
    checkpointed(tmp_path, 4, ckpt_path=saved)
    run = store(tmp_path)
    assert run.steps == [0, 1, 2, 3, 4]
    steps = image_steps(events(tmp_path / "run" / "v0"))
    assert steps["filters/00_net.0"] == [0, 1, 2, 3, 4]
    assert steps["filters_change/00_net.0"] == [1, 2, 3, 4]
    numbers = run.read_record(3).numbers
    assert numbers["update_ratio"]["net.0"].mean() > 0


def test_a_resumed_run_has_the_numbers_and_ranges_of_an_uninterrupted_one(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path / "parts", 2)
    checkpointed(tmp_path / "parts", 4, ckpt_path=saved)
    checkpointed(tmp_path / "whole", 4)
    parts, whole = store(tmp_path / "parts").read_record(4), store(tmp_path / "whole").read_record(4)
    assert parts.filters.keys() == whole.filters.keys()
    for layer, values in whole.filters.items():
        np.testing.assert_array_equal(parts.filters[layer], values)
    for number, by_layer in whole.numbers.items():
        for layer, numbers in by_layer.items():
            np.testing.assert_array_equal(parts.numbers[number][layer], numbers)
    for kind, states in whole.ranges.items():
        for layer, state in states.items():
            for part, array in state.items():
                np.testing.assert_array_equal(parts.ranges[kind][layer][part], array)


def test_a_resume_into_a_new_folder_carries_the_baseline_over(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, 2)
    checkpointed(tmp_path, 4, ckpt_path=saved, version="v1")
    old, new = store(tmp_path), RunStore.open(str(tmp_path / "run" / "v1" / "cnnlog"))
    assert new.steps == [0, 3, 4]
    assert new.manifest.carried_from == old.folder
    for layer, values in old.read_record(0).filters.items():
        np.testing.assert_array_equal(new.read_record(0).filters[layer], values)
    assert image_steps(events(tmp_path / "run" / "v1"))["filters/00_net.0"] == [0, 3, 4]
    assert new.read_record(3).numbers["weight_change"]["net.0"].mean() > 0


def test_a_resume_without_its_baseline_says_what_numbers_are_relative_to(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, 2)
    shutil.rmtree(tmp_path / "run" / "v0" / "cnnlog")
    with pytest.warns(UserWarning, match=r"no baseline from before the resume.*relative to step 2"):
        checkpointed(tmp_path, 4, ckpt_path=saved, version="v1")
    new = RunStore.open(str(tmp_path / "run" / "v1" / "cnnlog"))
    assert new.steps == [2, 3, 4]
    assert new.manifest.baseline_step == 2
    assert new.read_record(2).numbers["weight_change"]["net.0"].max() == 0


def test_a_checkpoint_older_than_the_store_repeats_nothing(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, 2)
    checkpointed(tmp_path, 4, ckpt_path=saved)
    before = (tmp_path / "run" / "v0" / "cnnlog" / "step-00000003.safetensors").read_bytes()
    checkpointed(tmp_path, 5, ckpt_path=saved)
    assert (tmp_path / "run" / "v0" / "cnnlog" / "step-00000003.safetensors").read_bytes() == before
    assert image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"] == [0, 1, 2, 3, 4, 5]


def test_a_second_fit_on_one_trainer_goes_on(tmp_path: Path) -> None:
    run, module = trainer(tmp_path, monitors(), max_epochs=2), TinyCNN()
    fit(run, module)
    run.fit_loop.max_epochs = 4
    fit(run, module)
    assert store(tmp_path).steps == [0, 1, 2, 3, 4]
    assert image_steps(events(tmp_path / "run" / "v0"))["feature_maps/00_net.0"] == [0, 1, 2, 3, 4]


def test_a_checkpoint_holds_primitives_and_opens_with_weights_only(tmp_path: Path) -> None:
    saved = checkpointed(tmp_path, 1)
    state = torch.load(saved, weights_only=True)["callbacks"]
    ours = [value for key, value in state.items() if "Monitor" in key]
    assert len(ours) == 2
    assert all(type(value) in (int, str) for one in ours for value in one.values())


def test_monitors_pickle_before_and_after_a_fit(tmp_path: Path) -> None:
    callbacks = monitors()
    pickle.loads(pickle.dumps(callbacks))
    fit(trainer(tmp_path, callbacks, max_epochs=1), TinyCNN())
    pickle.loads(pickle.dumps(callbacks))


def test_validate_test_and_the_tuner_leave_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, monitors(), logger=False)
    run.validate(TinyCNN(), loader(), verbose=False)
    Tuner(run).lr_find(TinyCNN(), loader(), num_training=5)
    assert not (tmp_path / "cnnlog_logs").exists()
