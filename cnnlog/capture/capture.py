"""Looks at a borrowed model with hooks: what could be watched in it, and a snapshot of what is.

Torch ends here: a `Snapshot` holds NumPy arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from cnnlog.capture.layers import LayerInfo, layer_names
from cnnlog.capture.loan import borrow, may_write_parameters
from cnnlog.capture.measuring import Measured, packed, peaks, sampled
from cnnlog.capture.probe import Probe
from cnnlog.capture.sharding import is_sharded, plain_type, reshard
from cnnlog.capture.transfer import departures, sent, to_host
from cnnlog.capture.used_weights import (
    UsedWeights,
    evenly,
    filters_of,
    has_one_weight,
    has_weights,
    indexed,
    stored_weight,
    weight_shape,
    weights_of,
)
from cnnlog.capture.wiring import Wiring, is_norm
from cnnlog.messages import near
from cnnlog.snapshot import FloatArray, Snapshot

Forward = Callable[[nn.Module, torch.Tensor], object]
"""Runs the module on the probe, e.g. under a precision plugin: `run(module, tensor)`; what it returns is ignored."""

# Where a class has its `forward` from if it defines none.
_WITHOUT_FORWARD = ("torch.nn.modules.module", "lightning.pytorch.core.module", "pytorch_lightning.core.module")


def survey(
    model: nn.Module, probe: Probe | torch.Tensor | None, *, run: Forward | None = None, through: str | None = None
) -> tuple[LayerInfo, ...]:
    """Find out what could be watched, by one dry run of the probe.

    Args:
        model: any module; it is borrowed and given back.
        probe: `[N, C, H, W]`, or clips `[N, C, T, H, W]`. Without one nothing runs, and no output shape is known.
        run: runs the probe through a module, `run(module, tensor)`. By default the module is called with the tensor, on
            its own device and in its own precision.
        through: the name of the sub-module that the probe runs through, if the model has no forward of its own.

    Returns:
        Every named module: first those that ran, in execution order, then the others in order of registration.

    Raises:
        ValueError: the model cannot be looked at, or the probe cannot go through it. The message names the layers that
            ran.
    """
    outputs: dict[str, tuple[int, ...]] = {}
    full: dict[str, tuple[int, ...]] = {}  # with all frames
    weights: dict[str, tuple[int, ...] | None] = {}
    images = None if probe is None else len(_tensor(probe))

    def record(name: str, module: nn.Module, output: object) -> None:
        if name not in outputs:
            outputs[name], full[name] = _maps_shape(output), _shape(output)
            weights[name] = weight_shape(module)

    with borrow(model):
        modules = _named(model)
        paths = {name: path for name, path, _ in layer_names(model)}
        weighty = {module: name for name, module in modules.items() if has_weights(module)}
        wiring = Wiring(
            layers=weighty,
            norms={module: name for name, module in modules.items() if is_norm(module)},
        )
        if probe is not None:
            try:
                with wiring.hooked():
                    watched_run = wiring.around(run or _plain_run)
                    _forward(model, probe, modules, record, outputs, run=watched_run, through=through)
            except ValueError:  # some models cannot be watched so closely; what lies behind their layers is not known
                wiring.forget()
                outputs.clear()
                _forward(model, probe, modules, record, outputs, run=run, through=through)
        for name, module in modules.items():
            if name not in weights:
                weights[name] = weight_shape(module)
        reshard(model.modules())  # of what FSDP2 gathers in a forward pass nothing can be computed
        for name, module in modules.items():
            if len(weights[name] or ()) == 4 and not has_one_weight(module):
                weights[name] = None
    order = [*outputs, *(name for name in modules if name not in outputs)]
    return tuple(
        LayerInfo(
            name=name,
            kind=plain_type(modules[name]).__name__,
            module_type=plain_type(modules[name]),
            has_filters=len(weights[name] or ()) == 4,
            weight_shape=weights[name],
            output_shape=outputs.get(name) or None,
            has_maps=len(outputs.get(name, ())) == 4 and outputs[name][0] == images,
            path=paths[name],
            full_shape=full.get(name),
            has_weights=weights[name] is not None and modules[name] in weighty,
            behind=wiring.behind(name),
        )
        for name in order
    )


def capture(
    model: nn.Module,
    probe: Probe | torch.Tensor | None,
    *,
    filter_layers: Sequence[str],
    map_layers: Sequence[str],
    measured: Sequence[Measured] = (),
    before: Mapping[str, torch.Tensor] | None = None,
    step: int,
    epoch: int,
    global_step: int,
    run: Forward | None = None,
    through: str | None = None,
    wait: bool = True,
) -> Snapshot:
    """Copy the effective weights and the feature maps of some layers, and what the numbers of all need, in float32.

    Args:
        model: any module; it is borrowed and given back.
        probe: `[N, C, H, W]`, or clips `[N, C, T, H, W]`. It may be None if you want filters only: then nothing runs,
            and a layer that computes its weight in forward (standardised, fake-quantised) gives the stored weight.
        filter_layers: the names of the layers whose effective weight `[O, I, kH, kW]` you want. The frames of a 3-D
            convolution stand side by side, `[O, I, kH, kT * kW]`.
        map_layers: the names of the layers whose first output `[N, C, H, W]` you want. Of `[N, C, T, H, W]` you get the
            middle frame.
        measured: the layers that numbers are kept of, and what to take of each.
        before: layer -> its weights before the last optimiser step, as `weights_now` gave them; None without.
        step: the snapshot's step.
        epoch: completed training epochs.
        global_step: completed optimiser steps.
        run: runs the probe through a module, `run(module, tensor)`. By default the module is called with the tensor, on
            its own device and in its own precision.
        through: the name of the sub-module that the probe runs through, if the model has no forward of its own.
        wait: wait until the copies have left a CUDA device. If not, `Snapshot.ready` waits, and any thread may call it.

    Raises:
        ValueError: a name is unknown, a layer has no 4-D weight or output, or the probe cannot go through the model.
    """
    if probe is None and map_layers:
        raise ValueError(f"Feature maps of {', '.join(map_layers)} were asked for without a probe: give one.")
    with departures() as ready, borrow(model) as all_modules:
        modules = _named(model)
        taken = _Taken(
            modules,
            filter_layers,
            map_layers,
            measured,
            sharded=is_sharded(all_modules),
            at_once=may_write_parameters(model),
        )
        if probe is not None:
            with taken.used:
                _forward(model, probe, taken.watched, taken.record, taken.ran, run=run, through=through)
        if taken.sharded:
            reshard(all_modules)  # what FSDP2 gathers for a forward pass may be of lower precision than what is trained
        taken.complete()
        stepped = packed(before or {})
    missing = [name for name in map_layers if name not in taken.maps]
    if missing:
        raise ValueError(f"No feature maps: {', '.join(map(repr, missing))} did not run on the probe.")
    arrived = ready()
    if wait and arrived is not None:
        arrived()
    return Snapshot(
        step=step,
        epoch=epoch,
        global_step=global_step,
        filters={name: taken.filters[name] for name in filter_layers},
        feature_maps={name: taken.maps[name] for name in map_layers},
        weights={layer.name: taken.weights[layer.name] for layer in measured},
        outputs={layer.name: taken.outputs[layer.name] for layer in measured if layer.name in taken.outputs},
        peaks={layer.name: taken.peaks[layer.name] for layer in measured if layer.name in taken.peaks},
        before=stepped,
        ready=None if wait else arrived,
    )


class _Taken:
    """What is taken of a model while the probe runs through it.

    Args:
        modules: all of the model's, by name.
        filter_layers: the layers whose filters are wanted.
        map_layers: the layers whose feature maps are wanted.
        measured: the layers that numbers are kept of.
        sharded: whether weights must be gathered when nothing runs.
        at_once: whether weights must be taken as soon as their layer has run, for the model may write into them.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        filter_layers: Sequence[str],
        map_layers: Sequence[str],
        measured: Sequence[Measured],
        *,
        sharded: bool,
        at_once: bool,
    ) -> None:
        self.sharded = sharded
        self.filters: dict[str, FloatArray] = {}
        self.maps: dict[str, FloatArray] = {}
        self.weights: dict[str, FloatArray] = {}
        self.outputs: dict[str, FloatArray] = {}
        self.peaks: dict[str, FloatArray] = {}
        self.ran: dict[str, tuple[int, ...]] = {}
        self._pictured, self._map_layers = set(filter_layers), set(map_layers)
        self._measured = {layer.name: layer for layer in measured}
        self._into = {layer.at: layer for layer in measured if layer.at is not None}
        self._weighty = tuple(dict.fromkeys([*filter_layers, *self._measured]))
        names = dict.fromkeys([*self._weighty, *map_layers, *self._into])
        self.watched = {name: _known(modules, name) for name in names}
        chosen = {layer.name: layer.filters for layer in measured}
        chosen |= dict.fromkeys(filter_layers)  # all filters of those that are pictured
        # Of what is pictured the weight is seen in use, as a whole network may put another in its place.
        unseen = [] if sharded or at_once else [name for name in chosen if name not in self._pictured]
        plain = {name: stored_weight(self.watched[name]) for name in unseen}
        self._plain = {name: weight for name, weight in plain.items() if weight is not None}
        computing = {self.watched[name]: filters for name, filters in chosen.items() if name not in self._plain}
        self.used = UsedWeights(computing)
        self._chosen = chosen

    def record(self, name: str, module: nn.Module, output: object) -> None:
        """Take what is wanted of a module that has run."""
        if name in self.ran:  # one module may run several times: its first call counts
            return
        tensor = _first_tensor(output)
        self.ran[name] = () if tensor is None else tuple(tensor.shape)
        if name in self._map_layers:
            self.maps[name] = _feature_maps(name, output)
        if not self.sharded and name not in self._plain and (name in self._pictured or name in self._measured):
            self._take_weights(name)
        if tensor is None:
            return
        measured, layer = self._measured.get(name), self._into.get(name)
        if measured is not None:
            taken = sampled(tensor, channels_last=measured.channels_last)
            if taken is not None:
                self.outputs[name] = taken
        if layer is not None:
            highest = peaks(tensor, channels_last=layer.channels_are_last(tensor))
            if highest is not None:
                self.peaks[layer.name] = highest

    def complete(self) -> None:
        """Take the weights that are still missing: of plain layers, of a sharded model, of heads that did not run."""
        plain = {name: indexed(weight, self._chosen[name]) for name, weight in self._plain.items()}
        self.weights |= packed(plain)
        for name in self._weighty:
            self._take_weights(name)

    def _take_weights(self, name: str) -> None:
        module = self.watched[name]
        if name in self._pictured and name not in self.filters:
            self.filters[name] = self.used.filters[module] if module in self.used.filters else filters_of(name, module)
        if name not in self._measured or name in self.weights:
            return
        chosen = self._measured[name].filters
        if name in self.filters:
            self.weights[name] = self.filters[name] if chosen is None else self.filters[name][evenly(chosen)]
        elif module in self.used.filters:
            self.weights[name] = self.used.filters[module]
        else:
            self.weights[name] = weights_of(name, module, chosen)


# --- the forward pass ------------------------------------------------------------------------------------------------


def _forward(
    model: nn.Module,
    probe: Probe | torch.Tensor,
    watched: Mapping[str, nn.Module],
    record: Callable[[str, nn.Module, object], None],
    ran: Mapping[str, tuple[int, ...]],
    *,
    run: Forward | None,
    through: str | None,
) -> None:
    """Run the probe with a temporary hook on every watched module; a failure says how far it came."""
    start = entry(model, through)
    tensor = _tensor(probe)
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
        for name, module in watched.items()
    ]
    try:
        (run or _plain_run)(start, tensor)
    except Exception as error:
        raise ValueError(_how_far(start, tensor, ran, error)) from error
    finally:
        for handle in handles:
            handle.remove()


def _plain_run(module: nn.Module, tensor: torch.Tensor) -> None:
    module(placed(module, tensor))


def placed(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device and in the precision of the module's first floating-point parameter or buffer.

    Args:
        module: where the tensor will go in.
        tensor: the probe.
    """
    example = next((p for p in chain(module.parameters(), module.buffers()) if p.is_floating_point()), tensor)
    moved = sent(tensor, example.device)
    return moved.to(example.dtype) if tensor.is_floating_point() else moved  # uint8 is what the network is fed


def _how_far(start: nn.Module, tensor: torch.Tensor, ran: Mapping[str, tuple[int, ...]], error: Exception) -> str:
    last = [f"{name or type(start).__name__} {list(shape)}" for name, shape in list(ran.items())[-5:]]
    before = f"{len(ran) - 5} layers, then " if len(ran) > 5 else ""
    reason = (str(error).strip().splitlines() or [""])[0]
    return (
        f"The probe {list(tensor.shape)} cannot go through {type(start).__name__} "
        f"({type(error).__name__}: {reason}); what ran: {before}{', '.join(last) or 'nothing'}. "
        "Give a probe of the size and channels that the model is trained on."
    )


def entry(model: nn.Module, through: str | None) -> nn.Module:
    """The module that the probe runs through: the model, unless it has no forward of its own.

    Args:
        model: any module.
        through: the name of one of its sub-modules; None takes the model, or else its only child with parameters.

    Raises:
        ValueError: there is no such sub-module, or it must be named because there are several.
    """
    if through is not None:
        modules = _named(model)
        if through not in modules:
            close = near(through, list(modules)) or [name for name, _ in model.named_children()]
            raise ValueError(f"through={through!r} names no sub-module of {type(model).__name__}; there is {close}.")
        return modules[through]
    home = getattr(type(model).forward, "__module__", "")
    if "forward" in model.__dict__ or home not in _WITHOUT_FORWARD:
        return model
    children = {name: child for name, child in model.named_children() if any(True for _ in child.parameters())}
    if len(children) == 1:
        return next(iter(children.values()))
    raise ValueError(
        f"{type(model).__name__} has no forward of its own, and {len(children)} children with parameters "
        f"({', '.join(map(repr, children)) or 'none'}): define forward(self, x), or say through=NAME, "
        "the sub-module to run the probe through."
    )


def _tensor(probe: Probe | torch.Tensor) -> torch.Tensor:
    return probe if isinstance(probe, torch.Tensor) else probe.tensor


def _named(model: nn.Module) -> dict[str, nn.Module]:
    # A compiled module and the one inside it share a name; the inner one, which comes later, is the layer.
    return {name: module for name, _, module in layer_names(model)}


def _known(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise ValueError(f"The model has no layer {name!r}: its structure has changed since the layers were chosen.")
    return modules[name]


# --- outputs ---------------------------------------------------------------------------------------------------------


def _first_tensor(output: object) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    return next((tensor for part in parts if (tensor := _first_tensor(part)) is not None), None)


def _shape(output: object) -> tuple[int, ...]:
    tensor = _first_tensor(output)
    return () if tensor is None else tuple(tensor.shape)


def _maps_shape(output: object) -> tuple[int, ...]:
    """The output's shape, of `[N, C, T, H, W]` that of one frame."""
    shape = _shape(output)
    return (*shape[:2], *shape[3:]) if len(shape) == 5 else shape


def _feature_maps(name: str, output: object) -> FloatArray:
    tensor = _first_tensor(output)
    if tensor is None or tensor.dim() not in (4, 5):
        raise ValueError(
            f"Layer {name!r} has no feature maps: expected an output [N, C, H, W] or [N, C, T, H, W], "
            f"but it is {list(_shape(output))}."
        )
    return to_host(tensor if tensor.dim() == 4 else tensor[:, :, tensor.shape[2] // 2])
