"""The Lightning callbacks: when to capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cnnlog.capture.probe import Probe
from cnnlog.kinds import Unit
from cnnlog.monitors.fit import Session
from cnnlog.monitors.plan import OnError, Plan, Weights, plan_of
from cnnlog.monitors.run_folder import Memory
from cnnlog.recording.drawer import Look
from cnnlog.rendering.ranges import RangeRule
from cnnlog.rendering.views import View

STATE_VERSION = 1


class _Monitor(L.Callback):
    """What the two monitors have in common: the schedule, and the hooks.

    The first monitor of a trainer leads: its hooks serve all of them, so that one probe pass and one folder do.

    Args:
        layers: names, globs and module types of the layers to watch, or `"auto"`.
        probe: the fixed input: a `Probe`, or the paths of images; None looks for one elsewhere.
        look: what a picture shows, and how.
        every_n_epochs: completed epochs between two snapshots; None counts steps, or takes 1 if those are not given
            either.
        every_n_train_steps: completed optimiser steps between two snapshots; None counts epochs.
        at_steps: optimiser steps with a snapshot each.
        on_error: `"warn"` or `"raise"`: what becomes of problems while training.
        through: the sub-module that the probe runs through; None runs it through the module's own `forward`.
        weights: `"train"` shows the weights being trained, `"ema"` their averages.
    """

    def __init__(
        self,
        *,
        layers: str | Sequence[type[nn.Module] | str],
        probe: Probe | str | Sequence[str] | None,
        look: Look,
        every_n_epochs: int | None,
        every_n_train_steps: int | None,
        at_steps: Sequence[int],
        on_error: OnError,
        through: str | None,
        weights: Weights,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        steps = _steps_of(who, at_steps)
        unit, every = _schedule(who, every_n_epochs, every_n_train_steps, steps)
        self.plan = plan_of(
            who,
            layers=layers,
            probe=probe,
            look=look,
            shown="max_filters" if isinstance(self, FilterMonitor) else "max_maps",
            unit=unit,
            every=every,
            on_error=on_error,
            through=through,
            weights=weights,
            at_steps=steps,
            channels_last=channels_last,
        )
        self._is_alone = False
        self._session: Session | None = None
        self._memory = Memory()

    @property
    def state_key(self) -> str:
        """What the monitor's state is called in a checkpoint: its class, as soon as `setup` knows that it is alone.

        Before that it is a name of this monitor's own, because Lightning refuses two states of one name in words that
        say nothing of monitors.
        """
        name = type(self).__qualname__
        return name if self._is_alone else f"{name}-{id(self)}"

    # The defaults are for a class in the place of a monitor, whose arguments arrive one place too early.
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule | None = None, stage: str = "") -> None:
        """Refuse monitors that do not go together, and strategies under which a layer does not have its weights.

        Args:
            trainer: the one that has this monitor.
            pl_module: the module that it trains.
            stage: what begins: `"fit"`, `"validate"`, `"test"` or `"predict"`.
        """
        _refuse_classes(self, trainer)
        if stage == "fit":
            _refuse_strategy(trainer)
        monitors = _monitors(trainer)
        for kind in (FilterMonitor, FeatureMapMonitor):
            count = sum(isinstance(monitor, kind) for monitor in monitors)
            if count > 1:
                raise ValueError(
                    f"A Trainer takes one {kind.__name__}, got {count}: name all layers, and give all images, to one."
                )
        self._is_alone = True
        if len({monitor.plan.weights for monitor in monitors}) > 1:
            raise ValueError(
                "The monitors of a Trainer share their forward pass, but one shows the averaged weights "
                '(weights="ema") and the other those being trained (weights="train"): give both the same.'
            )
        through = sorted({monitor.plan.through for monitor in monitors if monitor.plan.through is not None})
        if len(through) > 1:
            raise ValueError(
                f"The monitors of a Trainer share their probe's way through the model, but got through={through[0]!r} "
                f"and through={through[1]!r}: give it to one."
            )
        given = [monitor.plan.probe for monitor in monitors if monitor.plan.probe is not None]
        if len({probe.fingerprint for probe in given}) > 1:
            raise ValueError("The monitors of a Trainer share their probe, but got two different ones: give it to one.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look the model over, and capture the baseline.

        Args:
            trainer: about to train.
            pl_module: the module that it trains.
        """
        shown = pl_module if self.plan.weights == "train" else _averaged(trainer, pl_module)
        if not self._leads(trainer):
            return
        plans: dict[type, Plan] = {type(monitor): monitor.plan for monitor in _monitors(trainer)}
        filters = next((plan for kind, plan in plans.items() if issubclass(kind, FilterMonitor)), None)
        maps = next((plan for kind, plan in plans.items() if issubclass(kind, FeatureMapMonitor)), None)
        memory = next((m._memory for m in _monitors(trainer) if m._memory.folder), self._memory)
        for monitor in _monitors(trainer):
            monitor._memory = memory
        callbacks: list[L.Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]  # set in a connector
        before_us = callbacks[: callbacks.index(self)]
        self._session = Session(
            trainer, pl_module, filters=filters, maps=maps, memory=memory, shown=shown, before_us=before_us
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare the probe with the first batch, once.

        Args:
            trainer: the one that trains.
            pl_module: the module that it trains.
            batch: that is trained on next.
            batch_idx: its number in the epoch; not used.
        """
        if self._session is not None:
            self._session.before_batch(batch)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the weights as they are, if a snapshot is due after this step: how large it is, is a number of it."""
        if self._session is not None:
            self._session.taking.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Capture, if steps are counted and one is due.

        Args:
            trainer: counts the steps.
            pl_module: the module that it trains.
            outputs: of the training step; not used.
            batch: that was trained on; not used.
            batch_idx: its number in the epoch; not used.
        """
        if self._session is not None:
            self._session.taking.after_batch()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Capture, if epochs are counted and one is due.

        Args:
            trainer: counts the epochs.
            pl_module: the module that it trains.
        """
        if self._session is not None:
            self._session.taking.after_epoch()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Capture the last state, draw the strips, write what is waiting.

        Where weight averaging comes before the monitors, it has swapped the weights by now, and the last state is that
        of the last epoch's end.

        Args:
            trainer: the one that has trained.
            pl_module: the module that it trains.
        """
        if self._session is not None:
            self._session.end()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that weight averaging may have swapped the weights."""
        if self._session is not None:
            self._session.taking.validates(True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the weights are those being trained."""
        if self._session is not None:
            self._session.taking.validates(False)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException | None = None
    ) -> None:
        """Write what is waiting, after Ctrl-C the last state, too; `teardown` is not called after an exception.

        Args:
            trainer: the one that is interrupted.
            pl_module: the module that it trains.
            exception: what ends the training; Lightning raises it after this.
        """
        if isinstance(self, L.Trainer):  # a class in the place of a monitor, which `setup` has refused
            return
        try:
            if isinstance(exception, KeyboardInterrupt) and self._session is not None:
                self._session.interrupted()
        finally:
            self._close(failed=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the background threads.

        Args:
            trainer: the one that has this monitor.
            pl_module: the module that it trains.
            stage: what ends: `"fit"`, `"validate"`, `"test"` or `"predict"`.
        """
        self._close(failed=False)

    def state_dict(self) -> dict[str, Any]:
        """Where the run lies, in primitives, so that a resumed one finds its baseline."""
        memory = self._memory
        return {"version": STATE_VERSION, "folder": memory.folder, "run_id": memory.run_id, "step": memory.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a newer version's is left alone.

        Args:
            state_dict: out of the user's checkpoint.
        """
        if state_dict.get("version") == STATE_VERSION:
            self._memory = Memory(state_dict["folder"], state_dict["run_id"], state_dict["step"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}  # threads and locks cannot be pickled, and spawn strategies do

    def _leads(self, trainer: L.Trainer) -> bool:
        return _monitors(trainer)[0] is self

    def _close(self, *, failed: bool) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                if failed:
                    session.end(failed=True)
            finally:
                session.close()


class FilterMonitor(_Monitor):
    """Logs the filters of a CNN's convolutions as image grids, from the state before training on.

    Add it to `Trainer(callbacks=[...])`. The first snapshot, the baseline, is taken before the first optimiser step.
    The pictures go to every logger of the trainer; the values go into the folder `<log_dir>/cnnlog/`, which
    `cnnlog.open_run` reads. Training with the monitor is bit-identical to training without it. A trainer takes one
    `FilterMonitor`.

    Args:
        layers: the layers to watch. `"auto"` takes all convolutions if there are at most 8; with more, it takes the
            first one and the last one at each spatial resolution, and never more than 8. Otherwise give a layer's name
            as in `model.named_modules()`, a glob such as `"layer1.*"`, or a list of names, globs and module types such
            as `torch.nn.Conv2d`.
        every_n_epochs: take a snapshot each time that many epochs are complete. The default is 1, unless you give
            `every_n_train_steps` or `at_steps`. The steps of the pictures are completed epochs. Whatever you give, the
            last state of a training is captured, too, also after Ctrl-C.
        every_n_train_steps: take a snapshot each time that many optimiser steps (`trainer.global_step`) are complete,
            instead. The steps of the pictures are then optimiser steps. If one monitor of a trainer counts optimiser
            steps, the pictures of all do, also of one that takes its snapshots every few epochs.
        at_steps: take a snapshot after each of these optimiser steps (`trainer.global_step`), such as
            `(1, 10, 100, 1000)`; with `every_n_epochs` or `every_n_train_steps`, besides. The steps of the pictures are
            then optimiser steps.
        max_filters: how many filters a grid shows at most: always the first ones, so that a cell keeps its filter.
            The numbers cover all filters.
        view: how a filter with several input channels is drawn. `"rgb"`: in colour (3 input channels). `"gray"`: as one
            cell (1 input channel, or a depthwise convolution). `"slices"`: a row of cells, one for each input channel.
            `"mean"`: as one cell, averaged over the input channels. `"auto"` takes rgb, gray or slices, whichever fits.
        max_slices: how many rows (filters) and columns (input channels) the slices view has at most.
        value_range: what full colour stands for. `"channel"`: for each filter, its largest magnitude at the baseline.
            `"layer"`: for all filters of a layer, the largest of these. The range has room: it is 1.5 times that. It
            doubles when more than 2 % of a filter lie beyond it, and never shrinks; a notch above the cell then says
            so. `"step"`: for each filter, its largest magnitude at that step; you cannot compare the colours of two
            steps then.
        cmap: the colours. `"auto"` runs from blue over white at 0 to red. `"gray"` or the name of any matplotlib colour
            map replaces it. RGB filters have their own colours, with gray at 0.
        width: the width of a grid in pixels, from 16 to 10,000, at most. TensorBoard shows 350 pixels unscaled. Small
            filters are enlarged by a whole factor. `None` draws each value as one pixel.
        change: log the difference between each filter and itself at the baseline, too, as `filters_change/LAYER`.
        histograms: log histograms of the weights, too, as `histograms_filters/LAYER`.
        probe: the input that is run through the model at each snapshot. It tells which layers run, at which
            resolution, and which weights they convolve with. Give a `Probe`, the path of an image or a list of paths;
            the network gets such an image with values from 0 to 1. `None` takes the probe of the `FeatureMapMonitor`,
            or else what the network is fed: the first image of the first batch of one that the validation (without one,
            the training) loader makes. A run that goes on keeps its probe.
        on_error: what to do if something fails during training (a full disk, a tracker that is not reachable):
            `"warn"` warns once of each kind of problem and the training goes on; `"raise"` raises a `RuntimeError`,
            which ends the training.
        through: the name of the sub-module to run the probe through, such as `"discriminator"` of a GAN. You need it
            if your module has no `forward` of its own and several parts, or if its `forward` takes no images.
        weights: which weights to show. `"train"` shows those being trained. `"ema"` shows the averages that another
            callback keeps in an `AveragedModel` of the whole module, as Lightning's `WeightAveraging` and
            `EMAWeightAveraging` do. List that callback before the monitors. Until its first update the averages are
            the initial weights. All monitors of a trainer show the same weights.

    Raises:
        ValueError: an argument has an impossible value (raised at once), or does not fit the model, the data or the
            log folder (raised when training starts, before the first optimiser step).
        TypeError: `layers`, `probe`, `at_steps`, `through`, `cmap`, `change` or `histograms` is of a wrong type.
        FileNotFoundError: a probe image does not exist.

    Example:
        >>> callbacks = [FilterMonitor("features.*", every_n_epochs=2)]  # for Trainer(callbacks=...)
    """

    def __init__(
        self,
        layers: str | Sequence[type[nn.Module] | str] = "auto",
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        at_steps: Sequence[int] = (),
        max_filters: int = 64,
        view: View = "auto",
        max_slices: int = 16,
        value_range: RangeRule = "channel",
        cmap: str = "auto",
        width: int | None = 350,
        change: bool = True,
        histograms: bool = False,
        probe: Probe | str | Sequence[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        through: str | None = None,
        weights: Literal["train", "ema"] = "train",
    ) -> None:
        super().__init__(
            layers=layers,
            probe=probe,
            look=Look(
                shown=max_filters,
                value_range=value_range,
                cmap=cmap,
                width=width,
                change=change,
                histograms=histograms,
                view=view,
                slices=max_slices,
            ),
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            at_steps=at_steps,
            on_error=on_error,
            through=through,
            weights=weights,
        )


class FeatureMapMonitor(_Monitor):
    """Logs a CNN's feature maps of a fixed probe as image grids, from the state before training on.

    Add it to `Trainer(callbacks=[...])`. The first snapshot, the baseline, is taken before the first optimiser step.
    The pictures go to every logger of the trainer; the values go into the folder `<log_dir>/cnnlog/`, which
    `cnnlog.open_run` reads. Training with the monitor is bit-identical to training without it. A trainer takes one
    `FeatureMapMonitor`.

    Args:
        probe: the fixed input. Give a `Probe`, the path of an image or a list of paths; the network gets such an image
            with values from 0 to 1. `None` takes the probe of the `FilterMonitor`, or else what the network is
            fed: the first image of the first batch of one that the validation (without one, the training) loader makes.
            The data set and every random generator are left as they were. A run that goes on keeps its probe.
        layers: the layers to watch. `"auto"` takes all convolutions if there are at most 8; with more, it takes the
            first one and the last one at each spatial resolution, and never more than 8. Otherwise give a layer's name
            as in `model.named_modules()`, a glob such as `"layer1.*"`, or a list of names, globs and module types such
            as `torch.nn.Conv2d`. Any module with an output `[N, C, H, W]` may be named, also one with its channels
            last; of an output `[N, C, T, H, W]` the middle frame is shown, and one of `[N, C, L]` (audio, EEG) is
            shown as a strip. Where k maps are made of an image (frames, pairs, patches), there are k pictures of it.
        every_n_epochs: take a snapshot each time that many epochs are complete. The default is 1, unless you give
            `every_n_train_steps` or `at_steps`. The steps of the pictures are completed epochs. Whatever you give, the
            last state of a training is captured, too, also after Ctrl-C.
        every_n_train_steps: take a snapshot each time that many optimiser steps (`trainer.global_step`) are complete,
            instead. The steps of the pictures are then optimiser steps. If one monitor of a trainer counts optimiser
            steps, the pictures of all do, also of one that takes its snapshots every few epochs.
        at_steps: take a snapshot after each of these optimiser steps (`trainer.global_step`), such as
            `(1, 10, 100, 1000)`; with `every_n_epochs` or `every_n_train_steps`, besides. The steps of the pictures are
            then optimiser steps.
        max_maps: how many feature maps a grid shows at most: always the first ones, so that a cell keeps its channel.
            The numbers cover all channels.
        value_range: what full colour stands for. `"channel"`: for each channel, its peak at the baseline: the largest
            value, or the largest magnitude if the layer goes below 0. `"layer"`: for all channels of a layer, the
            largest of these. The range has room: it is 1.5 times that. It doubles when more than 2 % of a channel lie
            beyond it, and never shrinks; a notch above the cell then says so. `"step"`:
            for each channel, its peak at that step; you cannot compare the colours of two steps then.
        cmap: the colours. `"auto"` runs from black at 0 to yellow, or, if the layer goes below 0, from blue over white
            at 0 to red. `"gray"` or the name of any matplotlib colour map replaces it.
        width: the width of a grid in pixels, from 16 to 10,000, at most. TensorBoard shows 350 pixels unscaled. Small
            maps are enlarged by a whole factor; maps larger than their cell are averaged by area, in the stored file,
            too. `None` draws each value as one pixel.
        change: log the difference between each map and itself at the baseline, too, as `feature_maps_change/LAYER`.
        histograms: log histograms of the activations, too, as `histograms_feature_maps/LAYER`.
        on_error: what to do if something fails during training (a full disk, a tracker that is not reachable):
            `"warn"` warns once of each kind of problem and the training goes on; `"raise"` raises a `RuntimeError`,
            which ends the training.
        through: the name of the sub-module to run the probe through, such as `"discriminator"` of a GAN. You need it
            if your module has no `forward` of its own and several parts, or if its `forward` takes no images.
        weights: which weights to show. `"train"` shows those being trained. `"ema"` shows the averages that another
            callback keeps in an `AveragedModel` of the whole module, as Lightning's `WeightAveraging` and
            `EMAWeightAveraging` do. List that callback before the monitors. Until its first update the averages are
            the initial weights. All monitors of a trainer show the same weights.
        channels_last: where the channels are in the outputs of which cnnlog cannot find that out, such as those behind
            an attention: last (`True`) or second (`False`). `None` refuses such a layer by name; outputs of
            convolutions, norms and linear layers, and what is made of them, are read as they are, whatever you say.

    Raises:
        ValueError: an argument has an impossible value (raised at once), or does not fit the model, the data or the
            log folder (raised when training starts, before the first optimiser step).
        TypeError: `layers`, `probe`, `at_steps`, `through`, `cmap`, `change`, `histograms` or `channels_last` is of a
            wrong type.
        FileNotFoundError: a probe image does not exist.

    Example:
        >>> callbacks = [FeatureMapMonitor(Probe.chart(64), ["features.*"])]  # for Trainer(callbacks=...)
    """

    def __init__(
        self,
        probe: Probe | str | Sequence[str] | None = None,
        layers: str | Sequence[type[nn.Module] | str] = "auto",
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        at_steps: Sequence[int] = (),
        max_maps: int = 64,
        value_range: RangeRule = "channel",
        cmap: str = "auto",
        width: int | None = 350,
        change: bool = True,
        histograms: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        through: str | None = None,
        weights: Literal["train", "ema"] = "train",
        channels_last: bool | None = None,
    ) -> None:
        super().__init__(
            layers=layers,
            probe=probe,
            look=Look(
                shown=max_maps,
                value_range=value_range,
                cmap=cmap,
                width=width,
                change=change,
                histograms=histograms,
            ),
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            at_steps=at_steps,
            on_error=on_error,
            through=through,
            weights=weights,
            channels_last=channels_last,
        )


def _monitors(trainer: L.Trainer) -> list[_Monitor]:
    return [callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, _Monitor)]


def _averaged(trainer: L.Trainer, pl_module: L.LightningModule) -> nn.Module:
    """The averaged copy of the module that a callback before the monitors keeps.

    Args:
        trainer: has the callbacks.
        pl_module: the module that it trains.

    Raises:
        ValueError: there is none.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    first_monitor = callbacks.index(_monitors(trainer)[0])
    for position, callback in enumerate(callbacks):
        for value in vars(callback).values():
            if isinstance(value, AveragedModel) and isinstance(value.module, type(pl_module)):
                if position > first_monitor:
                    raise ValueError(
                        f'weights="ema" shows the average that {type(callback).__name__} keeps, but that callback '
                        "stands after the monitors, and would update it after they have looked: list it before them."
                    )
                return value.module
    names = ", ".join(type(callback).__name__ for callback in callbacks if not isinstance(callback, _Monitor))
    raise ValueError(
        'weights="ema" expected a callback that keeps an AveragedModel of the whole module, as Lightning\'s '
        f"WeightAveraging and EMAWeightAveraging do, but there is {names or 'no other callback'}: add one before the "
        'monitors, or give weights="train". StochasticWeightAveraging averages no batch-norm statistics, so that no '
        "forward pass can show its average."
    )


def _refuse_strategy(trainer: L.Trainer) -> None:
    strategy = getattr(trainer, "strategy", None)
    names = {cls.__name__ for cls in type(strategy).__mro__}
    if names & {"FSDPStrategy", "XLAFSDPStrategy"} or getattr(strategy, "zero_stage_3", False):
        raise ValueError(
            f"{type(strategy).__name__} flattens the weights of the layers over the processes, and the monitors cannot "
            "gather them: use ModelParallelStrategy with fully_shard (FSDP2), or DDPStrategy."
        )


def _refuse_classes(monitor: object, trainer: L.Trainer) -> None:
    """Refuse a monitor's class in the place of a monitor.

    Args:
        monitor: whose `setup` was called; of a class it is the trainer.
        trainer: that has the monitor among its callbacks.

    Raises:
        TypeError: there is a class.
    """
    trainer = monitor if isinstance(monitor, L.Trainer) else trainer
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    names = [one.__name__ for one in callbacks if isinstance(one, type) and issubclass(one, _Monitor)]
    if names:
        raise TypeError(
            f"Trainer(callbacks=...) takes a monitor, got the class {names[0]}: write {names[0]}() with its brackets, "
            f"as in callbacks=[{names[0]}()]."
        )


def _steps_of(who: str, at_steps: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(at_steps, Sequence) or isinstance(at_steps, (str, bytes)):
        raise TypeError(f"{who} expected at_steps as a list of optimiser steps, such as (10, 100), got {at_steps!r}.")
    for step in at_steps:
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"{who} expected at_steps to be whole numbers from 0 on, got {step!r} among them.")
    return tuple(sorted(set(at_steps)))


def _schedule(
    who: str, every_n_epochs: int | None, every_n_train_steps: int | None, at_steps: tuple[int, ...]
) -> tuple[Unit, int | None]:
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError(
            f"{who} takes every_n_epochs or every_n_train_steps, got both ({every_n_epochs}, {every_n_train_steps}); "
            "leave one out."
        )
    if at_steps and every_n_epochs is None and every_n_train_steps is None:
        return Unit.STEP, None
    unit: Unit = Unit.EPOCH if every_n_train_steps is None else Unit.STEP
    every = every_n_train_steps if every_n_train_steps is not None else 1 if every_n_epochs is None else every_n_epochs
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        name = "every_n_epochs" if unit == Unit.EPOCH else "every_n_train_steps"
        raise ValueError(f"{who} expected {name} to be a whole number from 1 on, got {every!r}.")
    return unit, every
