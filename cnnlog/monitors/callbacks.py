"""The Lightning callbacks: when to capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cnnlog.capture.probe import Probe
from cnnlog.kinds import Unit
from cnnlog.monitors.fit import Memory, Session
from cnnlog.monitors.plan import OnError, Plan, Weights, plan_of
from cnnlog.recording.drawer import Look
from cnnlog.rendering.ranges import RangeRule
from cnnlog.rendering.views import View

STATE_VERSION = 1


class _Monitor(L.Callback):
    """What the two monitors have in common: the schedule, and the hooks.

    The first monitor of a trainer leads: its hooks serve all of them, so that one probe pass and one folder do.
    """

    def __init__(
        self,
        *,
        layers: str | Sequence[type[nn.Module] | str],
        probe: Probe | str | Sequence[str] | None,
        look: Look,
        every_n_epochs: int | None,
        every_n_train_steps: int | None,
        on_error: OnError,
        through: str | None,
        weights: Weights,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        unit, every = _schedule(who, every_n_epochs, every_n_train_steps)
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
        )
        self._session: Session | None = None
        self._memory = Memory()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse monitors that do not go together, and strategies under which a layer does not have its weights."""
        if stage == "fit":
            _refuse_strategy(trainer)
        monitors = _monitors(trainer)
        for kind in (FilterMonitor, FeatureMapMonitor):
            count = sum(isinstance(monitor, kind) for monitor in monitors)
            if count > 1:
                raise ValueError(
                    f"A Trainer takes one {kind.__name__}, got {count}: name all layers, and give all images, to one."
                )
        units = {monitor.plan.unit for monitor in monitors}
        if len(units) > 1:
            raise ValueError(
                "The monitors of a Trainer share their steps, but one counts epochs (every_n_epochs) and the other "
                "training steps (every_n_train_steps): give both the same."
            )
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
        """Look the model over, and capture the baseline."""
        shown = pl_module if self.plan.weights == "train" else _averaged(trainer, pl_module)
        if not self._leads(trainer):
            return
        plans: dict[type, Plan] = {type(monitor): monitor.plan for monitor in _monitors(trainer)}
        filters = next((plan for kind, plan in plans.items() if issubclass(kind, FilterMonitor)), None)
        maps = next((plan for kind, plan in plans.items() if issubclass(kind, FeatureMapMonitor)), None)
        memory = next((m._memory for m in _monitors(trainer) if m._memory.folder), self._memory)
        for monitor in _monitors(trainer):
            monitor._memory = memory
        self._session = Session(trainer, pl_module, filters=filters, maps=maps, memory=memory, shown=shown)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Capture, if steps are counted and one is due."""
        if self._session is not None:
            self._session.after_batch()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Capture, if epochs are counted and one is due."""
        if self._session is not None:
            self._session.after_epoch()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the evolution, write what is waiting. No snapshot: weight averaging swaps weights in this hook."""
        if self._session is not None:
            self._session.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write what is waiting; `teardown` is not called after an exception."""
        self._close(failed=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the background threads."""
        self._close(failed=False)

    def state_dict(self) -> dict[str, Any]:
        """Where the run lies, in primitives, so that a resumed one finds its baseline."""
        memory = self._memory
        return {"version": STATE_VERSION, "folder": memory.folder, "run_id": memory.run_id, "step": memory.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a newer version's is left alone."""
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

    Args:
        layers: `"auto"` (every convolution up to 8; past that the first, and the last of each spatial resolution),
            names, globs, or module types.
        every_n_epochs: take a snapshot every that many epochs; 1 unless `every_n_train_steps` is given.
        every_n_train_steps: take one every that many optimiser steps instead.
        max_filters: how many filters a grid shows at most, always the first ones. Numbers cover all.
        view: `"rgb"` (3 input channels), `"gray"` (1 per group), `"slices"` (rows: filters, columns: input channels),
            `"mean"` (over the input channels); `"auto"` takes rgb, gray or slices.
        max_slices: rows and columns of the `slices` view at most.
        value_range: `"channel"` (each filter has the range of its baseline), `"layer"` (all share one), `"step"`
            (a fresh range at each step; steps are then not comparable).
        cmap: `"auto"`, `"gray"` or any colour map of matplotlib; rgb filters have their own colours.
        width: of a grid, in pixels at most; `None` for one without limit.
        change: log the signed difference to the baseline, too.
        histograms: log histograms of the weights, too.
        probe: needed only to tell the layers' resolutions in `"auto"`; the `FeatureMapMonitor`'s is used if there is
            one, else the first image of the validation (or training) data set.
        on_error: what to do when something goes wrong here while training: `"warn"` once, or `"raise"`.
        through: the sub-module to run the probe through, for a module without a `forward` of its own, or with one that
            takes no images (`"discriminator"` of a GAN).
        weights: which are shown: `"train"`, those being trained, or `"ema"`, the averages that a `WeightAveraging` or
            `EMAWeightAveraging` keeps, or any callback that holds an `AveragedModel` of the module; it has to stand
            before the monitors. Until its first update, these are the initial weights.

    Raises:
        ValueError: an argument that cannot be, at once; one that does not fit the model, when training starts.
    """

    def __init__(
        self,
        layers: str | Sequence[type[nn.Module] | str] = "auto",
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
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
            look=Look(max_filters, value_range, cmap, width, change, histograms, view, max_slices),
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            on_error=on_error,
            through=through,
            weights=weights,
        )


class FeatureMapMonitor(_Monitor):
    """Logs a CNN's feature maps of a fixed probe as image grids, from the state before training on.

    Args:
        probe: the fixed input (see `Probe`), or the path of an image, or several, that the network takes as they are
            (values from 0 to 1). `None` takes the first image of the validation (or training) data set, once.
        layers: as for `FilterMonitor`; any module with an output `[N, C, H, W]` may be named.
        every_n_epochs: as for `FilterMonitor`.
        every_n_train_steps: as for `FilterMonitor`.
        max_maps: how many maps a grid shows at most, always the first ones. Numbers cover all.
        value_range: as for `FilterMonitor`; ranges start at 0, or are symmetric if the layer goes below 0.
        cmap: as for `FilterMonitor`.
        width: as for `FilterMonitor`; larger maps are averaged by area.
        change: log the signed difference to the baseline, too.
        histograms: log histograms of the activations, too.
        on_error: as for `FilterMonitor`.
        through: as for `FilterMonitor`.
        weights: as for `FilterMonitor`.

    Raises:
        ValueError: an argument that cannot be, at once; one that does not fit the model, when training starts.
    """

    def __init__(
        self,
        probe: Probe | str | Sequence[str] | None = None,
        layers: str | Sequence[type[nn.Module] | str] = "auto",
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        max_maps: int = 64,
        value_range: RangeRule = "channel",
        cmap: str = "auto",
        width: int | None = 350,
        change: bool = True,
        histograms: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        through: str | None = None,
        weights: Literal["train", "ema"] = "train",
    ) -> None:
        super().__init__(
            layers=layers,
            probe=probe,
            look=Look(max_maps, value_range, cmap, width, change, histograms),
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            on_error=on_error,
            through=through,
            weights=weights,
        )


def _monitors(trainer: L.Trainer) -> list[_Monitor]:
    return [callback for callback in getattr(trainer, "callbacks", []) if isinstance(callback, _Monitor)]


def _averaged(trainer: L.Trainer, pl_module: L.LightningModule) -> nn.Module:
    """The averaged copy of the module that a callback before the monitors keeps.

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


def _schedule(who: str, every_n_epochs: int | None, every_n_train_steps: int | None) -> tuple[Unit, int]:
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError(
            f"{who} takes every_n_epochs or every_n_train_steps, got both ({every_n_epochs}, {every_n_train_steps}); "
            "leave one out."
        )
    unit: Unit = "epoch" if every_n_train_steps is None else "step"
    every = every_n_train_steps if every_n_train_steps is not None else 1 if every_n_epochs is None else every_n_epochs
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        name = "every_n_epochs" if unit == "epoch" else "every_n_train_steps"
        raise ValueError(f"{who} expected {name} to be a whole number from 1 on, got {every!r}.")
    return unit, every
