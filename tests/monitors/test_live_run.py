"""What a fit, a loop and a replay do alike, for one type conducts all three."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from support.training import TinyCNN, events, fit, image_steps, ours, probe, trainer
from torch import nn

from cnnlog import FeatureMapMonitor, FilterMonitor, open_run, watch
from cnnlog.monitors.replay import replay
from cnnlog.runs.store import RunStore


def monitors() -> list[Any]:
    return [FilterMonitor(), FeatureMapMonitor(probe())]


def said(call: Callable[[], object]) -> list[str]:
    """The package's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if ours(warning)]


# --- a table of layers that cannot be made


def broken(*_: Any, **__: Any) -> None:
    raise TypeError("torchinfo knows no such model")  # of any kind, not only a RuntimeError


def test_a_fit_warns_that_it_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlog.monitors.fit.layer_table", broken)
    texts = said(lambda: fit(trainer(tmp_path, monitors(), max_epochs=1), TinyCNN()))
    assert texts == ["cnnlog: no table of layers: torchinfo knows no such model"]
    assert image_steps(events(tmp_path / "run" / "v0"))["filters/00_net.0"] == [0, 1]


def test_a_loop_warns_that_it_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlog.monitors.loop.layer_table", broken)

    def loop() -> None:
        with watch(TinyCNN(), probe(), tmp_path) as watcher:
            watcher.snapshot(0)

    assert said(loop) == ["cnnlog: no table of layers: torchinfo knows no such model"]
    assert open_run(tmp_path).steps == (0,)


def test_a_replay_notes_that_it_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlog.monitors.replay.layer_table", broken)
    torch.save(TinyCNN().state_dict(), tmp_path / "epoch=1.pt")
    module = f"{TinyCNN.__module__}:TinyCNN"
    made = replay([tmp_path / "epoch=1.pt"], tmp_path / "out", module=module, source=probe())
    assert "no table of layers: torchinfo knows no such model" in made.notes
    assert open_run(made.folder).steps == made.steps


# --- no layer at all


@pytest.mark.parametrize("none", [[], (), "", " ", "\t", [""], ["net.0", " "], ("",)])
@pytest.mark.parametrize("kind", [FilterMonitor, FeatureMapMonitor])
def test_a_monitor_of_no_layer_is_refused_at_once(kind: Any, none: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} expected layers to name at least one layer, got "):
        kind(layers=none)


@pytest.mark.parametrize("none", [[], "", " ", [""], ["net.0", ""]])
@pytest.mark.parametrize("argument", ["layers", "map_layers"])
def test_a_loop_of_no_layer_is_refused_at_once(argument: str, none: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"watch expected {argument} to name at least one layer, got "):
        watch(TinyCNN(), probe(), tmp_path / "run", **{argument: none})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [set(), {"net.0"}, {}, {"net.0": 1}, (name for name in ["net.0"]), iter([]), 3, b"x"])
def test_layers_of_another_kind_are_refused_at_once(wrong: Any, tmp_path: Path) -> None:
    for make in (FilterMonitor, FeatureMapMonitor, lambda layers: watch(TinyCNN(), probe(), tmp_path, layers=layers)):
        with pytest.raises(TypeError, match=r'expected layers as "auto", names, globs or module types, got '):
            make(layers=wrong)
    with pytest.raises(TypeError, match=r'watch expected map_layers as "auto", names'):
        watch(TinyCNN(), probe(), tmp_path, map_layers=wrong)


@pytest.mark.parametrize("through", ["", "  "])
def test_a_sub_module_without_a_name_is_refused_at_once(through: str) -> None:
    with pytest.raises(TypeError, match="expected through as the name of a sub-module"):
        FilterMonitor(through=through)


def test_layers_that_are_given_are_accepted() -> None:
    accepted: list[Any] = ["auto", "net.*", ["net.0"], ("net.0",), nn.Conv2d, [nn.Conv2d, "net.0"]]
    for layers in accepted:
        FilterMonitor(layers)


# --- two fits of one trainer


def goes_on(run: Any, module: TinyCNN, epochs: int) -> list[str]:
    run.fit_loop.max_epochs = epochs
    return said(lambda: fit(run, module))


@pytest.mark.parametrize("logger", [False, True])
def test_two_fits_of_one_trainer_go_on_in_one_folder(logger: bool, tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, name="run", version="v0")
    run, module = trainer(tmp_path, monitors(), logger=board if logger else False, max_epochs=2), TinyCNN()
    assert said(lambda: fit(run, module)) == []
    assert goes_on(run, module, 4) == []
    (folder,) = tmp_path.rglob("cnnlog")
    assert folder == tmp_path / ("run/v0/cnnlog" if logger else "cnnlog_logs/version_0/cnnlog")
    store = RunStore.open(str(folder))
    assert store.steps == [0, 1, 2, 3, 4]
    assert store.manifest.baseline_step == 0
    drift = [store.read_record(step).numbers["weight_change"]["net.0"].mean() for step in store.steps]
    assert drift == sorted(drift)  # still relative to the first fit's baseline
    if not logger:
        files = (folder / "pictures" / "filters" / "00_net.0").iterdir()
        assert sorted(path.name for path in files) == [f"step-{step:08d}.png" for step in range(5)]


def test_three_fits_equal_one_without_a_logger(tmp_path: Path) -> None:
    """The same pictures, whether a training is made in one fit or in three."""

    class Forgetful(TinyCNN):
        """Its optimiser has no state that a new fit would begin anew."""

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    stored = []
    for name, parts in (("one", (6,)), ("three", (1, 3, 6))):
        torch.manual_seed(0)
        run, module = trainer(tmp_path / name, monitors(), logger=False, max_epochs=parts[0]), Forgetful()
        fit(run, module)
        for epochs in parts[1:]:
            assert goes_on(run, module, epochs) == []
        (folder,) = (tmp_path / name).rglob("cnnlog")
        pictures = (folder / "pictures").glob("filters*/*/*.png")
        files = [path for path in pictures if "filters_strip" not in path.parts]  # of which each fit leaves one
        stored.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert stored[0] == stored[1]
    assert len(stored[0]) == (7 + 6) * 2  # filters at 7 steps, and their changes from the second on; of 2 layers


def test_a_fit_that_failed_is_gone_on_with_in_its_folder(tmp_path: Path) -> None:
    class Stops(TinyCNN):
        stop = True

        def on_train_epoch_start(self) -> None:
            if self.stop and self.current_epoch == 1:
                raise KeyError("mine")

    run, module = trainer(tmp_path, monitors(), logger=False), Stops()
    with pytest.raises(KeyError, match="mine"):
        fit(run, module)
    module.stop = False
    assert said(lambda: fit(run, module)) == []
    (folder,) = tmp_path.rglob("cnnlog")
    assert RunStore.open(str(folder)).steps[0] == 0
    assert RunStore.open(str(folder)).steps[-1] == 3


def test_another_trainer_has_another_folder(tmp_path: Path) -> None:
    both = monitors()
    for _ in range(2):  # also where the monitors are the same
        fit(trainer(tmp_path, both, logger=False, max_epochs=1), TinyCNN())
    assert sorted(path.parent.name for path in tmp_path.rglob("cnnlog")) == ["version_0", "version_1"]


def test_a_second_fit_of_another_network_has_another_folder(tmp_path: Path) -> None:
    """Nobody named the first folder, so nobody could name another one."""
    run = trainer(tmp_path, monitors(), logger=False, max_epochs=1)
    fit(run, TinyCNN())
    run.fit_loop.max_epochs = 2
    wider = TinyCNN()
    wider.net[3] = torch.nn.Conv2d(6, 12, 3)
    wider.head = torch.nn.Linear(12, 3)
    (text,) = said(lambda: fit(run, wider))
    assert "no baseline from before the resume: the run that is resumed had other layers" in text
    old, new = (RunStore.open(str(tmp_path / f"cnnlog_logs/version_{i}/cnnlog")) for i in range(2))
    assert (old.steps, new.steps[-1]) == ([0, 1], 2)


def test_a_new_process_that_resumes_has_another_folder_with_the_baseline(tmp_path: Path) -> None:
    first = trainer(tmp_path, monitors(), logger=False, max_epochs=2)
    fit(first, TinyCNN())
    first.save_checkpoint(tmp_path / "two.ckpt")
    fit(trainer(tmp_path, monitors(), logger=False, max_epochs=3), TinyCNN(), ckpt_path=str(tmp_path / "two.ckpt"))
    old, new = (RunStore.open(str(tmp_path / f"cnnlog_logs/version_{i}/cnnlog")) for i in range(2))
    assert (old.steps, new.steps) == ([0, 1, 2], [0, 3])
    assert new.manifest.carried_from == old.folder


def test_a_checkpoint_of_the_same_trainer_goes_on_in_its_folder(tmp_path: Path) -> None:
    run, module = trainer(tmp_path, monitors(), logger=False, max_epochs=2), TinyCNN()
    fit(run, module)
    run.save_checkpoint(tmp_path / "two.ckpt")
    run.fit_loop.max_epochs = 3
    fit(run, module, ckpt_path=str(tmp_path / "two.ckpt"))
    (folder,) = tmp_path.rglob("cnnlog")
    assert RunStore.open(str(folder)).steps == [0, 1, 2, 3]
