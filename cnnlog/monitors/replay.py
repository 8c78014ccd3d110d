"""Checkpoints of a past training to the stored run that the monitors would have made.

Nothing is trained. Each checkpoint is loaded into the network, captured and recorded just as a monitor does it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cnnlog.capture.capture import survey
from cnnlog.capture.layer_table import LayerTable, layer_table
from cnnlog.capture.layers import LayerInfo, LayerSpec
from cnnlog.capture.probe import Probe, probe_as_kept
from cnnlog.kinds import Unit, UnitName
from cnnlog.messages import said, some
from cnnlog.models.checkpoints import Checkpoint, find, order
from cnnlog.models.files import load_weights, read_state_dict
from cnnlog.models.of_checkpoints import Network, baseline_network, module_network, torchvision_network
from cnnlog.monitors.live_run import LiveRun, RunPlace, Subject
from cnnlog.monitors.plan import Plan, choose
from cnnlog.monitors.ranks import Ranks
from cnnlog.recording.drawer import Look
from cnnlog.recording.problems import Problem
from cnnlog.runs.manifest import Manifest
from cnnlog.runs.run import Run
from cnnlog.runs.store import FOLDER, RunStore
from cnnlog.trackers import Tracker
from cnnlog.trackers.event_file import EventFile
from cnnlog.trackers.tensorboard import TensorBoardTracker


@dataclass(frozen=True)
class Replayed:
    """The run that was made.

    Attributes:
        folder: with TensorBoard's events, and the store in `cnnlog/` under it.
        steps: that are stored.
        relative_to: what drift and changes are relative to, in words.
        notes: sentences on what a reader should know.
    """

    folder: Path
    steps: tuple[int, ...]
    relative_to: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ProbeSource:
    """Where the fixed input comes from: images, the test chart, or a stored run; at most one of them.

    Attributes:
        images: files of images.
        chart: draw the test chart.
        run: take the probe of this run, as its network got it.
        size: height and width of images and chart in pixels; None takes what torchvision's weights of the architecture
            want, where one is known.
        mean: one number a channel, of values from 0 to 1, that is taken from images and chart; None takes
            torchvision's, where one is known.
        std: one number a channel by which they are divided then; None takes torchvision's, where one is known.
    """

    images: tuple[Path, ...] = ()
    chart: bool = False
    run: Run | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def probe(self, network: Network) -> Probe | None:
        """The probe for a network; None where there is no source.

        Args:
            network: its transform tells size and normalisation where none are given.

        Raises:
            ValueError: several sources, or an image that cannot be used.
        """
        sources = (("--image", self.images), ("--chart", self.chart), ("--probe-of", self.run))
        given = [name for name, there in sources if there]
        if len(given) > 1:
            raise ValueError(f"A run has one probe, but {' and '.join(given)} are given: leave all but one out.")
        if self.run is not None:
            names = self.run.manifest.probe.get("names")
            return probe_as_kept(torch.from_numpy(self.run.probe()), names=names)
        transform = network.transform if (self.size, self.mean, self.std) == (None, None, None) else None
        if self.images:
            return Probe.from_images(
                list(self.images), transform=transform, size=self.size, mean=self.mean, std=self.std
            )
        if self.chart:
            size = self.size or next(iter(getattr(transform, "crop_size", ())), 224)
            mean, std = (getattr(transform, name, getattr(self, name)) for name in ("mean", "std"))
            return Probe.chart(size, mean=mean, std=std)
        return None


def replay(
    paths: Sequence[Path],
    out: Path,
    *,
    arch: str | None = None,
    module: str | None = None,
    source: Probe | ProbeSource | None = None,
    baseline: str | None = None,
    unit: Unit | UnitName = Unit.EPOCH,
    layers: LayerSpec = "auto",
    look: Look | None = None,
    through: str | None = None,
    channels_last: bool | None = None,
    tensorboard: bool = True,
    progress: Callable[[Sequence[Checkpoint]], Iterable[Checkpoint]] = iter,
) -> Replayed:
    """Record every checkpoint as the monitors would have recorded the training there.

    Args:
        paths: checkpoints, or folders of them. They are put in the order of their steps.
        out: the run's folder, which is made; the store is in `cnnlog/` under it.
        arch: torchvision's name of the network; None takes the one that the first checkpoint fits.
        module: the network's class instead, `package.module:Class`.
        source: the probe, or where it comes from; None records filters only.
        baseline: the weights that the training started from, recorded as step 0: a file, or `DEFAULT` (torchvision's);
            layers that it lacks, or has in another shape, are not watched. None: the checkpoint of step 0 if there is
            one, else the first.
        unit: what steps count: `"epoch"` for the completed epochs that a checkpoint tells, `"step"` for its
            optimiser steps.
        layers: `"auto"` (every convolution up to 8; past that the first, and the last of each spatial resolution),
            names, globs, or module types.
        look: how pictures are drawn; None draws them as the monitors do.
        through: the sub-module that the probe runs through; None runs it through the network.
        channels_last: where the channels are in outputs of which that cannot be known; None refuses such layers.
        tensorboard: write TensorBoard's events, too.
        progress: is given the checkpoints and gives them back one by one, for a bar that shows how far it is.

    Raises:
        ValueError: a checkpoint does not fit the network, a layer is not there, the probe cannot go through.
        FileExistsError: `out` holds something.
        OSError: it cannot be written. Whatever is wrong, `out` is then as it was.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{str(out)!r} is there already: give another --output, or delete it.")
    if arch is not None and module is not None:
        raise ValueError(f"The network is given by arch or by module, but got both ({arch}, {module}): leave one out.")
    unit = Unit(unit)
    ordered = order(find(paths), unit=unit)
    first = ordered.checkpoints[0]
    network = torchvision_network(first.path, arch) if module is None else module_network(first.path, module)
    _load(network, first)
    before = None if baseline is None else baseline_network(baseline, network, module)
    if before is not None and first.step == 0:
        raise ValueError(f"{first.path} is of step 0 already, which is the baseline: leave --baseline out.")
    probe = source.probe(network) if isinstance(source, ProbeSource) else source
    plan = Plan(layers, look or Look(), unit, 1, "raise", probe, through, channels_last=channels_last)
    filters, maps = plan, None if probe is None else plan
    infos = survey(network.model, probe, through=through)
    notes = list(ordered.notes)
    if before is not None:
        infos, other = _shared(infos, survey(before.model, probe, through=through))
        notes += [f"not watched, for the baseline has no such layer of that shape: {some(other)}"] if other else []
    if maps is None:
        notes.append("no probe is given (--image, --chart or --probe-of), so only filters are recorded")
    watched = choose(infos, filters=filters, maps=maps)
    steps = ([] if before is None else [0]) + [checkpoint.step for checkpoint in ordered.checkpoints]

    def states() -> Iterator[tuple[nn.Module, Checkpoint]]:
        if before is not None:
            yield before.model, Checkpoint(Path(str(baseline)), 0, 0, 0)
        for checkpoint in progress(ordered.checkpoints):
            _load(network, checkpoint)
            yield network.model, checkpoint

    def table() -> LayerTable:
        assert probe is not None, "a table is asked for with a probe only"
        names = {layer.name for layer in watched.layers}
        return layer_table(network.model, probe.tensor, watched=names, through=through)

    subject = Subject(
        model=network.model,
        probe=probe,
        watched=watched,
        filters=filters,
        maps=maps,
        architecture=network.name,
        through=through,
        table=table if tensorboard and probe is not None else None,
    )
    with _new_folder(out) as folder:
        _record(subject, states(), steps[0], folder, tensorboard=tensorboard, notes=notes)
    origin = f"step {steps[0]} ({baseline or first.path.name})"
    return Replayed(out, tuple(steps), origin, tuple(dict.fromkeys(notes)))


def _load(network: Network, checkpoint: Checkpoint) -> None:
    load_weights(network.model, read_state_dict(checkpoint.path), source=str(checkpoint.path))


def _shared(infos: Sequence[LayerInfo], baseline: Sequence[LayerInfo]) -> tuple[tuple[LayerInfo, ...], tuple[str, ...]]:
    """The layers that both have alike, and the names of the others that could be watched.

    Args:
        infos: of the checkpoints' network.
        baseline: of the network before the training.
    """
    shapes = {info.name: (info.weight_shape, info.output_shape) for info in baseline}
    alike = tuple(info for info in infos if shapes.get(info.name) == (info.weight_shape, info.output_shape))
    names = {info.name for info in alike}
    return alike, tuple(info.name for info in infos if info.has_filters and info.name not in names)


class _Notes:
    """Keeps what a reader should know; what failed is raised, for here nothing must be missing.

    Args:
        notes: is added to.
    """

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def handle(self, problems: Iterable[Problem]) -> None:
        """Raise the first error, else note one problem of each kind.

        Args:
            problems: what went wrong since the last call.
        """
        problems = list(problems)
        for problem in problems:
            if problem.what == "probe" and problem.error is not None:
                raise problem.error
            if problem.error is not None:
                raise OSError(f"{problem.message} ({said(problem.error)})") from problem.error
        firsts = {problem.what: problem for problem in reversed(problems)}
        self._notes += [problem.message for problem in firsts.values()]

    def warn(self, what: str, message: str) -> None:
        """Note it.

        Args:
            what: the kind of the problem; not used.
            message: one sentence.
        """
        self._notes.append(message)


def _record(
    subject: Subject,
    states: Iterable[tuple[nn.Module, Checkpoint]],
    baseline_step: int,
    folder: Path,
    *,
    tensorboard: bool,
    notes: list[str],
) -> None:
    """Record one state after the other; each is with its tracker before the next is loaded.

    Args:
        subject: what is looked at, and how.
        states: the network as it was at each checkpoint, in the order of the steps.
        baseline_step: the step of the first of them.
        folder: of the run, which exists.
        tensorboard: write an event file into the folder.
        notes: is added to.
    """

    def place(manifest: Manifest) -> RunPlace:
        return RunPlace(RunStore(str(folder / FOLDER), manifest))

    def trackers(place: RunPlace, opened: ExitStack) -> list[Tracker]:
        if not tensorboard:
            return []
        file = EventFile(str(folder))
        opened.callback(file.close)
        return [TensorBoardTracker(file)]

    alone = Ranks(several=False)
    live = LiveRun.open(
        subject, now=baseline_step, place=place, trackers=trackers, ranks=alone, sharded_over=alone, says=_Notes(notes)
    )
    try:
        for model, checkpoint in states:
            live.take(checkpoint.step, model=model, epoch=checkpoint.epoch, global_step=checkpoint.global_step)
            live.recorder.drain(trackers=True)
            live.report()
        live.finish()
    finally:
        live.close()
    live.report()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if all goes well, and vanishes if not.

    Args:
        out: the folder to make; it may exist if it is empty.
    """
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise OSError(f"{str(out)!r} cannot be made ({error.strerror}): give another --output.") from error
        yield temporary
        if out.exists():
            out.rmdir()  # empty: anything else was refused
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
