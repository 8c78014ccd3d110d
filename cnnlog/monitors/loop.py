"""Watching a training loop that is not Lightning's: plain PyTorch, Fabric, Ignite."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, get_args

from torch import nn

from cnnlog.capture.capture import Forward, placed, survey
from cnnlog.capture.layer_table import LayerTable, layer_table
from cnnlog.capture.layers import LayerSpec
from cnnlog.capture.probe import Probe
from cnnlog.capture.sharding import is_sharded, plain_type
from cnnlog.kinds import Unit, UnitName
from cnnlog.monitors.alarm import Alarm
from cnnlog.monitors.facts import plain_numbers
from cnnlog.monitors.live_run import LiveRun, RunPlace, Subject, claim, taken
from cnnlog.monitors.plan import Plan, choose, plan_of, refuse_other
from cnnlog.monitors.ranks import Ranks
from cnnlog.monitors.run_as_fed import run_as_fed
from cnnlog.recording.drawer import Look
from cnnlog.recording.problems import Problem
from cnnlog.rendering.ranges import RangeRule
from cnnlog.rendering.views import View
from cnnlog.runs.manifest import Manifest
from cnnlog.runs.store import FOLDER, RunStore, folder_of_format
from cnnlog.trackers import Tracker, trackers_for, writes_events
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.handles import handles_given, refuse_closed
from cnnlog.trackers.tensorboard import events_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_WRAPPERS = {"DataParallel", "DistributedDataParallel", "_FabricModule"}  # by name: Fabric may not be installed
_INSTEAD = "Choose another log_dir, delete the folder, or go on with that run by resume=STEP."
_log = logging.getLogger(__name__)


def watch(
    model: nn.Module,
    probe: Probe | str | Sequence[str] | None,
    log_dir: str | os.PathLike[str],
    *,
    layers: LayerSpec = "auto",
    map_layers: LayerSpec | None = None,
    unit: Unit | UnitName = "epoch",
    max_filters: int = 64,
    max_maps: int = 64,
    view: View = "auto",
    max_slices: int = 16,
    value_range: RangeRule = "channel",
    cmap: str = "auto",
    width: int | None = 350,
    change: bool = True,
    histograms: bool = False,
    on_error: Literal["warn", "raise"] = "warn",
    through: str | None = None,
    run: Forward | None = None,
    channels_last: bool | None = None,
    tensorboard: bool | SummaryWriter = True,
    trackers: Sequence[Any] = (),
    resume: int = 0,
) -> Watcher:
    """Watch a model that a loop of your own trains.

    You get the same pictures, numbers and files as from the monitors under Lightning. Call `snapshot(0)` on what this
    returns before the first optimiser step, then `snapshot` after each epoch (or whenever you like), and `close` at the
    end, which a `with` block does for you. Training with snapshots is bit-identical to training without them.

    Args:
        model: the model that you train: any module. A wrapper of `DataParallel`, `DistributedDataParallel` or Fabric is
            taken off. With several processes, call this in one of them. If the model is sharded over the processes
            (`fully_shard`), call this, and each method of the watcher, in all of them; rank 0 writes.
        probe: the fixed input that feature maps are made of. Give a `Probe`, the path of an image or a list of paths;
            the network gets such an image with values from 0 to 1. `None` watches filters only.
        log_dir: a folder for this run; it is made if it does not exist. TensorBoard's events go into it, the stored
            values into `cnnlog/` below it, which `cnnlog.open_run` reads. A folder holds one run.
        layers: the layers to watch. `"auto"` takes all convolutions if there are at most 8; with more, it takes the
            first one and the last one at each spatial resolution, and never more than 8. Otherwise give a layer's name
            as in `model.named_modules()`, a glob such as `"layer1.*"`, or a list of names, globs and module types such
            as `torch.nn.Conv2d`.
        map_layers: the layers whose feature maps to watch, given in the same way. `None` takes those in `layers`. Any
            module with an output `[N, C, H, W]` may be named, also one with its channels last; of an output
            `[N, C, T, H, W]` the middle frame is shown, and one of `[N, C, L]` (audio, EEG) is shown as a strip. Where
            k maps are made of an image (frames, pairs, patches), there are k pictures of it.
        unit: what your steps count: `"epoch"` for completed epochs, `"step"` for completed optimiser steps. It names
            the axis in trackers and reports.
        max_filters: how many filters a grid shows at most: always the first ones, so that a cell keeps its filter.
            The numbers cover all filters.
        max_maps: how many feature maps a grid shows at most: always the first ones, so that a cell keeps its channel.
            The numbers cover all channels.
        view: how a filter with several input channels is drawn. `"rgb"`: in colour (3 input channels). `"gray"`: as one
            cell (1 input channel, or a depthwise convolution). `"slices"`: a row of cells, one for each input channel.
            `"mean"`: as one cell, averaged over the input channels. `"auto"` takes rgb, gray or slices, whichever fits.
        max_slices: how many rows (filters) and columns (input channels) the slices view has at most.
        value_range: what full colour stands for. `"channel"`: for each channel, its peak at the baseline: the largest
            value, or the largest magnitude where values below 0 are shown. `"layer"`: for all channels of a layer, the
            largest of these. The range has room: it is 1.5 times that. It doubles when more than 2 % of a channel lie
            beyond it, and never shrinks; a notch above the cell then says so. `"step"`:
            for each channel, its peak at that step; you cannot compare the colours of two steps then.
        cmap: the colours. `"auto"` runs from blue over white at 0 to red, or from black at 0 to yellow for feature maps
            that are nowhere below 0. `"gray"` or the name of any matplotlib colour map replaces it. RGB filters have
            their own colours, with gray at 0.
        width: the width of a grid in pixels, from 16 to 10,000, at most. TensorBoard shows 350 pixels unscaled. Small
            arrays are enlarged by a whole factor; feature maps larger than their cell are averaged by area, in the
            stored file, too. `None` draws each value as one pixel.
        change: log the differences to the baseline, too, as `filters_change/LAYER` and `feature_maps_change/LAYER`.
        histograms: log histograms of weights and activations, too.
        on_error: what to do if something fails while you train (a full disk, a tracker that is not reachable): `"warn"`
            warns once of each kind of problem and your loop goes on; `"raise"` raises a `RuntimeError` from the
            watcher's methods. Impossible arguments are always refused here, at once.
        through: the name of the sub-module to run the probe through, such as `"discriminator"` of a GAN. You need it
            if your module has no `forward` of its own and several parts, or if its `forward` takes no images.
        run: a function `run(module, tensor)` that executes the forward pass of the probe, for example under autocast.
            What it returns is ignored. By default `module(tensor)` is called, with the probe on the device and in the
            precision of the model's first floating-point parameter.
        channels_last: where the channels are in the outputs of which cnnlog cannot find that out, such as those behind
            an attention: last (`True`) or second (`False`). `None` refuses such a layer by name; outputs of
            convolutions, norms and linear layers, and what is made of them, are read as they are, whatever you say.
        tensorboard: `True` writes an event file into `log_dir`. Your own `SummaryWriter`, of torch or of tensorboardX,
            gets the pictures and numbers instead; you close it. `False` writes no event file. If no tracker takes
            pictures then, they become files: `log_dir/cnnlog/pictures/TAG/step-00000003.png`.
        trackers: where pictures and numbers go, too: a list of what your trackers work with. Give a `SummaryWriter`
            (torch, tensorboardX), a W&B run (`wandb.init()`), an MLflow client with a run's id as `(client, run_id)`, a
            Comet experiment, an `aim.Run`, a ClearML task, a Trackio run (`trackio.init()`), a logger of Lightning's,
            or an object of your own with a method such as `log_image(name, image, step)`. You close them, after the
            watcher. A ClearML task that `Task.init` began is served without being named, as ClearML does with other
            writers. With several processes, those of rank 0 are used. If a `SummaryWriter` in the list writes into
            `log_dir`, `tensorboard=True` adds no second event file there.
        resume: the step that your training goes on from, if `log_dir` holds its run so far; for example the epoch of
            the checkpoint that you have loaded. Steps that are stored already are not written again. 0 begins a run.

    Returns:
        A `Watcher`: call its `snapshot(step)`, and use it in a `with` block or `close` it at the end.

    Raises:
        ValueError: an argument has an impossible value or does not fit the model; or `log_dir` holds a run already and
            `resume` is 0; or the run there cannot be resumed, for example because its layers or its probe differ.
        TypeError: `model`, `probe`, `log_dir`, `layers`, `run`, `through`, `cmap`, `change`, `histograms` or `trackers`
            is of a wrong type, or something in `trackers` takes no pictures.
        FileNotFoundError: a probe image does not exist, or there is no run in `log_dir` to resume.

    Example:
        >>> import tempfile, torch
        >>> from cnnlog import Probe, watch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> with watch(model, Probe.chart(32), tempfile.mkdtemp()) as watcher:
        ...     watcher.snapshot(0)  # before the first optimiser step: the baseline
        ...     for epoch in range(2):
        ...         watcher.snapshot(epoch + 1)  # after the epoch's training
        >>> watcher.layers
        ('0',)
    """
    who = "watch"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{who} expected model as a torch.nn.Module, got {model!r}.")
    if not isinstance(log_dir, (str, os.PathLike)) or not os.fspath(log_dir):
        raise TypeError(f"{who} expected log_dir as the path of a folder, got {log_dir!r}.")
    if run is not None and not callable(run):
        raise TypeError(f"{who} expected run as a function of a module and a tensor, or None, got {run!r}.")
    if not isinstance(unit, str) or unit not in get_args(UnitName):
        raise ValueError(f"{who} expected unit as one of {', '.join(get_args(UnitName))}, got {unit!r}.")
    if not isinstance(tensorboard, bool) and not writes_events(tensorboard):
        raise ValueError(
            f"{who} expected tensorboard as one of True, False, got {tensorboard!r}; or give a SummaryWriter."
        )
    if not _is_step(resume):
        raise ValueError(f"{who} expected resume to be a whole number from 0 on, got {resume!r}.")
    common: dict[str, Any] = {"unit": Unit(unit), "every": 1, "on_error": on_error, "through": through}
    look = Look(value_range=value_range, cmap=cmap, width=width, change=change, histograms=histograms)
    filters = plan_of(
        who,
        layers=layers,
        probe=probe,
        look=replace(look, shown=max_filters, view=view, slices=max_slices),
        shown="max_filters",
        **common,
    )
    maps = plan_of(
        who,
        layers=layers if map_layers is None else map_layers,
        layers_are="layers" if map_layers is None else "map_layers",
        probe=filters.probe,
        look=replace(look, shown=max_maps),
        shown="max_maps",
        channels_last=channels_last,
        **common,
    )
    return Watcher(
        model,
        filters=filters,
        maps=None if maps.probe is None else maps,
        log_dir=os.fspath(log_dir),
        run=run,
        tensorboard=tensorboard,
        trackers=trackers,
        resume=resume,
    )


class Watcher:
    """A training loop that is being watched. `cnnlog.watch` makes one; use it in a `with` block, or call `close`.

    Attributes:
        layers: the names of the watched layers, in the order in which they run.
        folder: the folder of the stored run, `<log_dir>/cnnlog`; `cnnlog.open_run` takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        filters: Plan,
        maps: Plan | None,
        log_dir: str,
        run: Forward | None,
        tensorboard: bool | SummaryWriter,
        trackers: Sequence[Any],
        resume: int,
    ) -> None:
        model = _bare(model)
        ranks = Ranks(several=is_sharded(model.modules()))
        self._unit = filters.unit
        self._alarm = Alarm(raises=filters.on_error == "raise", warned=set(), say=_log.warning, ranks=ranks)
        self.folder = f"{log_dir.rstrip('/')}/{FOLDER}"
        handles: list[Any] = []
        with ranks.together():  # of its own: what rank 0 refuses here, the others must not miss in the forward pass
            if ranks.first:
                handles = _handles(log_dir, tensorboard, trackers)
        with ranks.together():
            look = functools.partial(survey, model, run=run, through=filters.through)
            fed, infos = (None, look(None)) if filters.probe is None else run_as_fed(filters.probe, look)
            filters = replace(filters, probe=fed)
            watched = choose(infos, filters=filters, maps=maps)
        self.layers = tuple(layer.name for layer in watched.layers)
        with_table = ranks.share(filters.probe is not None and len(handles) > 0)
        subject = Subject(
            model=model,
            probe=filters.probe,
            watched=watched,
            filters=filters,
            maps=maps,
            architecture=plain_type(model).__name__,
            run=run,
            through=filters.through,
            # No method of this watcher, which must be free to go while its run is under way.
            table=functools.partial(_table, model, filters, self.layers) if with_table else None,
        )
        self._live = LiveRun.open(
            subject,
            now=resume,
            place=functools.partial(_place, self.folder, resume),
            trackers=functools.partial(_trackers, handles, filters.unit),
            ranks=ranks,
            sharded_over=ranks,
            says=self._alarm,
        )
        self._end = weakref.finalize(self, self._live.close)  # also for a loop that ends without `close`
        self._resumed_at = self._live.last_step
        if self._live.writes and (store := self._live.recorder.store) is not None:
            self.folder = store.folder  # beside the one asked for, if that holds a run of an older format

    def snapshot(self, step: int, *, global_step: int = 0, metrics: Mapping[str, SupportsFloat] | None = None) -> None:
        """Capture the model as it is now. The first snapshot is the baseline, which changes and drift are relative to.

        This copies the arrays and returns; drawing and writing happen in the background. If something fails, you get
        one warning for each kind of problem. A step that a resumed run holds already is skipped.

        Args:
            step: the number of this snapshot, from 0 on and above all earlier ones: how many epochs (with
                `unit="step"`: optimiser steps) are complete. 0 is the state before the first optimiser step.
            global_step: how many optimiser steps are complete, if `step` counts epochs; it is stored beside the epoch.
            metrics: numbers of your own that are kept beside the snapshot, such as `{"val_loss": 0.31}`;
                `Run.metrics` reads them.

        Raises:
            RuntimeError: something failed, and the watcher was made with `on_error="raise"`.
        """
        if not self._may(step, global_step):
            return
        known, wrong = plain_numbers(metrics or {})
        if wrong:
            self._alarm.handle([Problem("metrics", f"metrics expected names with numbers, left out: {wrong}")])
        epochs = self._unit == Unit.EPOCH
        epoch, count = (int(step), global_step) if epochs else (0, int(step))
        self._live.take(int(step), epoch=epoch, global_step=count, metrics=known)
        self._live.report()

    def close(self, *, failed: bool = False) -> None:
        """Draw the strips, write what is waiting and end the background threads. A second call does nothing.

        A `with` block calls this for you.

        Args:
            failed: say `True` if an exception of yours ended the training; then this raises none that would hide it.

        Raises:
            RuntimeError: something failed, and the watcher was made with `on_error="raise"`.
        """
        if not self._end.alive:
            return
        try:
            self._alarm.failed |= failed
            self._live.finish(failed=failed)
        finally:
            self._end()
        self._live.report()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def __repr__(self) -> str:
        return f"Watcher({', '.join(self.layers)}; {self.folder}, step {self._live.last_step})"

    def _may(self, step: int, global_step: int) -> bool:
        last = self._live.last_step
        if not self._end.alive:
            problem = f"no snapshot of step {step!r}: the watcher is closed"
        elif not _is_step(step):
            problem = f"no snapshot of step {step!r}: expected a whole number from 0 on"
        elif not _is_step(global_step):
            problem = (
                f"no snapshot of step {step}: expected global_step as a whole number from 0 on, got {global_step!r}"
            )
        elif step <= self._resumed_at:
            return False
        elif step <= last:
            problem = f"no snapshot of step {step}: steps must rise, and {last} is there; count over the whole training"
        else:
            return True
        self._alarm.handle([Problem("step", problem)])
        return False


def _handles(log_dir: str, tensorboard: bool | SummaryWriter, trackers: Any) -> list[Any]:
    """Where pictures and numbers go: an event file of our own in `log_dir`, and what was given.

    Args:
        log_dir: the folder of this run.
        tensorboard: True for an event file of our own there, False for none, or a `SummaryWriter`.
        trackers: what the user gave as `trackers=`; it is checked here.
    """
    given = handles_given("watch", trackers)
    if tensorboard is False:
        return given
    if tensorboard is not True:
        refuse_closed("watch", "tensorboard", tensorboard)
        return [tensorboard, *given]
    here = os.path.abspath(log_dir)
    if any(writes_events(handle) and os.path.abspath(events_of(handle).folder) == here for handle in given):
        return given  # of two event files in a folder, TensorBoard may show one
    return [EventFile(log_dir), *given]


def _place(folder: str, resume: int, manifest: Manifest) -> RunPlace:
    """Where the run is kept: in a new folder, or in that of the run to go on with.

    Args:
        folder: of the run's files.
        resume: the step that the training goes on from; 0 begins a run.
        manifest: of a run that begins now.
    """
    if resume == 0:
        try:
            return RunPlace(claim(folder, manifest))
        except FileExistsError:
            raise taken(RunStore.open(folder), _INSTEAD) from None
    here = folder_of_format(folder)
    old = RunStore.open(here if RunStore.exists(here) else folder)
    if not old.steps:
        raise ValueError(f"{old.folder} holds no snapshot to go on from: leave resume out and delete the folder.")
    refuse_other(old.manifest, manifest)
    if old.folder == here:
        return RunPlace(old, old)
    manifest = replace(manifest, baseline_step=old.manifest.baseline_step, carried_from=old.folder)
    return RunPlace(claim(here, manifest), old)


def _trackers(handles: Sequence[Any], unit: Unit, place: RunPlace, opened: ExitStack) -> list[Tracker]:
    """Those behind the handles; our own event file is closed at the end.

    Args:
        handles: what `_handles` gave.
        unit: what steps count.
        place: where the run is kept.
        opened: what is put on it is undone when the run is closed.
    """
    assert place.store is not None, "a watched loop is always stored"
    for handle in handles:
        if isinstance(handle, EventFile):
            opened.callback(handle.close)
    return trackers_for(handles, folder=place.store.folder, unit=unit, files=not handles)


def _table(model: nn.Module, plan: Plan, watched: Sequence[str]) -> LayerTable:
    assert plan.probe is not None, "a table is asked for with a probe only"
    return layer_table(model, placed(model, plan.probe.tensor), watched=watched, through=plan.through)


def _bare(model: nn.Module) -> nn.Module:
    """The model without what wraps it to spread it over processes.

    Args:
        model: any module.
    """
    while {cls.__name__ for cls in type(model).__mro__} & _WRAPPERS:
        model = model.module  # type: ignore[assignment]  # every wrapper has one
    return model


def _is_step(step: object) -> bool:
    return isinstance(step, int) and not isinstance(step, bool) and step >= 0
