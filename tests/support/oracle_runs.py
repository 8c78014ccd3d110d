"""The runs that the oracle looks at: each network of its zoo, watched by cnnlog and seen with plain hooks beside it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from support import oracle, oracle_board, oracle_checks, oracle_exports, oracle_ranges
from support.oracle import Page
from support.oracle_checks import Tally
from support.oracle_pages import Side
from support.oracle_zoo import ZOO, Case, State, seen, trained, weights_of
from support.training import trainer
from torch.utils.data import DataLoader, TensorDataset

import cnnlog
from cnnlog import Probe
from cnnlog.kinds import Kind
from cnnlog.reports.export import Form, export
from cnnlog.reports.page.page import write_report
from cnnlog.reports.part import Wanted
from cnnlog.reports.tensorboard_run import write_board

PAIRS = ("plain", "batch_norm", "video", "residual")
"""Of these a second run is trained from the same start, at a tenth of the rate."""


@dataclass
class Seen:
    """A run, and what was seen beside it."""

    case: Case
    folder: Path
    states: list[State]
    run: oracle.Stored

    @cached_property
    def tally(self) -> Tally:
        """What the comparison of all of it gives."""
        return self.check(self.run)

    def check(self, run: oracle.Stored) -> Tally:
        """Compare what is stored, or a copy of it with a fault, with what was seen."""
        tally = Tally()
        oracle_checks.check_numbers(run, self.case, self.states, tally)
        oracle_checks.check_arrays(run, self.case, self.states, tally)
        oracle_checks.check_pictures(run, self.states, tally)
        oracle_ranges.check_ranges(run, self.states, tally)
        return tally


class Runs:
    """Each network's run, trained when it is first asked for; `"slow NAME"` is the same at a tenth of the rate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[str, Seen] = {}
        self.others: dict[str, Tally] = {}

    def __getitem__(self, name: str) -> Seen:
        if name not in self._runs:
            self._runs[name] = self._watched(name)
        return self._runs[name]

    def _watched(self, name: str) -> Seen:
        case, folder, states = ZOO[name.removeprefix("slow ")], self._folder / name, []
        torch.manual_seed(0)
        model = case.build()
        with warnings.catch_warnings():
            if name == "not_finite":  # which is told, and tried elsewhere
                warnings.simplefilter("ignore", UserWarning)
            with cnnlog.watch(model, Probe.from_tensor(case.probe()), folder, **case.options) as watcher:
                for step, global_step in trained(model, case, lr=1e-3 if name.startswith("slow ") else 1e-2):
                    states.append(seen(model, case, step, global_step))
                    watcher.snapshot(step, global_step=global_step)
        return Seen(case, folder, states, oracle.stored(folder))


def sides_of(runs: Runs, name: str) -> list[Side]:
    """What is compared: two runs, or one with its baseline."""
    found = runs[name]
    if name not in PAIRS:
        return [Side(found.run, found.case, states) for states in (found.states[:1], found.states)]
    return [Side(one.run, one.case, one.states) for one in (found, runs[f"slow {name}"])]


def page_of(runs: Runs, name: str, folder: Path) -> Page:
    """The page of a network's runs."""
    write_report(_comparison(runs, name), folder / "page.html")
    return oracle.page(folder / "page.html")


def board_of(runs: Runs, name: str, folder: Path) -> oracle_board.Board:
    """The TensorBoard run of the comparison of a network's runs."""
    write_board(_comparison(runs, name), folder / "board")
    return oracle_board.Board(folder / "board")


@dataclass(frozen=True)
class Exported:
    """A file that was exported of a layer: what it is, the layer, its kind, and all frames of it."""

    form: str
    layer: str
    kind: str
    frames: list[Any]
    durations: list[float] = field(default_factory=list)


def exports_of(runs: Runs, name: str, folder: Path) -> list[Exported]:
    """A strip and an animation of all that a network's run shows, and a sheet of all of it at the last step.

    A GIF has 256 colours, so filters in colours are animated as PNG.
    """
    run, found = cnnlog.open_run(runs[name].folder), []
    for layer in run.manifest.layers:
        for kind, shape in ((Kind.FILTERS, layer.weight_shape), (Kind.FEATURE_MAPS, layer.output_shape)):
            if shape is None:
                continue
            forms: list[Form] = ["strip", "apng" if layer.view == "rgb" else "gif"]
            wanted = Wanted(layer=layer.name, kind=kind)
            for form, file in zip(forms, export(run, forms, wanted, folder), strict=True):
                times = oracle_exports.durations_of(file.path) if form != "strip" else []
                found.append(Exported(form, layer.name, str(kind), oracle_exports.frames_of(file.path), times))
    (sheet,) = export(run, ["sheet"], Wanted(), folder)
    return [*found, Exported("sheet", "", "", oracle_exports.frames_of(sheet.path))]


def check_exports(exports: list[Exported], found: Seen) -> Tally:
    """What of the exports of a run is not what the oracle saw."""
    tally, side = Tally(), Side(found.run, found.case, found.states)
    expected = oracle_exports.Export(side)
    for one in exports:
        if one.form == "sheet":
            oracle_exports.check_sheet(one.frames[0], expected, side.states[-1].step, tally)
        elif one.form == "strip":
            oracle_exports.check_strip(one.frames[0], expected, one.layer, one.kind, tally)
        else:
            oracle_exports.check_animation(one.frames, expected, one.layer, one.kind, tally)
            if not one.durations[0] == one.durations[-1] > one.durations[1] > 0:
                tally.fault("animation", f"{one.kind} of {one.layer}", f"frames stand {one.durations} ms")
    return tally


def json_of(runs: Runs, name: str) -> dict[str, Any]:
    """The numbers of a network's runs, as a program gets them that reads JSON."""
    found: dict[str, Any] = json.loads(json.dumps(_comparison(runs, name).to_dict(), allow_nan=False))
    return found


def _comparison(runs: Runs, name: str) -> cnnlog.Comparison:
    return cnnlog.compare(*(runs[one].folder for one in ([name, f"slow {name}"] if name in PAIRS else [name])))


class Trained(L.LightningModule):
    """A network of the zoo in Lightning's hands. It keeps its weights before each optimiser step."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self._case = case.build(), case
        self.before: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.before = weights_of(self.net, self._case.layers, "net.")


class Watching(L.Callback):
    """Sees the network at the baseline and after each epoch, as the monitors do."""

    def __init__(self, case: Case) -> None:
        self.case, self.states = case, list[State]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._see(pl_module, 0, 0, {})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Trained)
        self._see(pl_module, trainer.current_epoch + 1, trainer.global_step, pl_module.before)

    def _see(self, module: L.LightningModule, step: int, global_step: int, before: dict[str, Any]) -> None:
        state = seen(module.get_submodule("net"), self.case, step, global_step, prefix="net.")
        self.states.append(replace(state, before=before))


def in_lightning(name: str, folder: Path) -> Seen:
    """A network of the zoo that Lightning's Trainer trains under both monitors."""
    case = ZOO[name]
    torch.manual_seed(0)
    module, watching, probe = Trained(case), Watching(case), Probe.from_tensor(case.probe())
    with torch.no_grad():
        shape = case.build().eval()(case.probe()).shape[1:]
    generator = torch.Generator().manual_seed(7)
    images, targets = (torch.randn(12, *size, generator=generator) for size in (case.image, shape))
    data = DataLoader(TensorDataset(images, targets), batch_size=4)
    callbacks = [watching, cnnlog.FilterMonitor(probe=probe), cnnlog.FeatureMapMonitor(probe=probe)]
    trainer(folder, callbacks).fit(module, data)
    inside = replace(case, layers={f"net.{layer}": behind for layer, behind in case.layers.items()})
    return Seen(inside, folder, watching.states, oracle.stored(folder / "run" / "v0"))
