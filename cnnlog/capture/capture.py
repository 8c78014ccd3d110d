"""Looks at a borrowed model with hooks: what could be watched in it, and a snapshot of what is.

Torch ends here: a `Snapshot` holds NumPy arrays only.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, product

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cnnlog.capture.failures import how_far, is_of_form
from cnnlog.capture.layers import LayerInfo, layer_names, with_rows
from cnnlog.capture.loan import borrow, has_run, may_write_parameters, unguarded
from cnnlog.capture.measuring import Measured, packed, peaks, sampled
from cnnlog.capture.probe import Probe
from cnnlog.capture.reading import as_maps, first_tensor, noting
from cnnlog.capture.seen import Infos, Seen
from cnnlog.capture.sharding import is_sharded, plain_type, reshard
from cnnlog.capture.transfer import departures, sent, to_host
from cnnlog.capture.transforms import inside_transform, outside_transforms, unwrapped
from cnnlog.capture.used_weights import (
    UsedWeights,
    evenly,
    filters_of,
    has_weights,
    indexed,
    is_complex,
    stored_weight,
    weights_of,
)
from cnnlog.capture.watchable import Unwatchable, kept_lazy, refuse_scripted, unwatchable
from cnnlog.capture.write_guard import unseen, unwatched
from cnnlog.messages import near
from cnnlog.snapshot import FloatArray, Snapshot

Forward = Callable[[nn.Module, torch.Tensor], object]
"""Runs the module on the probe, e.g. under a precision plugin: `run(module, tensor)`; what it returns is ignored."""

_PRECISIONS_TRIED = 3
_PARTS_TRIED = 8

# The precision in which a module takes the probe, where that is none that its caller would give it; a survey knows.
_takes: weakref.WeakKeyDictionary[nn.Module, torch.dtype] = weakref.WeakKeyDictionary()

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
    with borrow(model, runs=probe is not None):
        modules = _named(model)
        reasons = unwatchable(modules)
        seen = Seen({name: module for name, module in modules.items() if name not in reasons})
        if reasons and not any(map(has_weights, seen.modules.values())):
            raise Unwatchable(f"{next(iter(reasons.values()))}.")
        if probe is not None:
            refuse_scripted(modules, reasons, entry(model, through))
            with kept_lazy(modules, reasons):
                _look(model, probe, seen, run=run, through=through)
        seen.complete()
        reshard(model.modules())  # of what FSDP2 gathers in a forward pass nothing can be computed
        infos = Infos(seen, images=0 if probe is None else len(_tensor(probe)))
        paths = {name: path for name, path, _ in layer_names(model)}
        order = [*seen.outputs, *(name for name in modules if name not in seen.outputs)]
        return tuple(
            infos.of(name, paths[name])
            if name not in reasons
            else LayerInfo(
                name=name,
                kind=plain_type(modules[name]).__name__,
                module_type=plain_type(modules[name]),
                has_filters=False,
                weight_shape=None,
                output_shape=None,
                path=paths[name],
                refusal=reasons[name],
            )
            for name in order
        )


def _look(
    model: nn.Module, probe: Probe | torch.Tensor, seen: Seen, *, run: Forward | None, through: str | None
) -> None:
    """Run the probe once, as the network takes it: watched closely if it bears that, in a precision that it has.

    Raises:
        ValueError: it cannot go through. The message says of what it failed, and how to go on.
    """
    start, first = entry(model, through), None
    _takes.pop(start, None)
    for closely, dtype in product((True, False), (None, *_precisions(start, _tensor(probe), run=run))):
        seen.forget()
        _takes.pop(start, None)
        if dtype is not None:
            _takes[start] = dtype
        try:
            with seen.wiring.hooked() if closely else unguarded(model):
                watched_run = seen.wiring.around(run or _plain_run) if closely else run
                _forward(model, probe, seen.modules, seen.record, seen.outputs, run=watched_run, through=through)
        except Unwatchable:
            raise
        except ValueError as error:
            first = first or error
            continue
        seen.followed = closely
        if any(len(shape) > 2 and shape[0] != len(_tensor(probe)) for shape in seen.outputs.values()):
            _look_for_unsteady(model, probe, seen, run=run, through=through)
        return
    _takes.pop(start, None)
    seen.forget()
    assert first is not None, "one pass at least was tried"
    raise ValueError(f"{first}{_way_on(model, start, probe, first.__cause__, run=run)}") from first.__cause__


def _look_for_unsteady(
    model: nn.Module, probe: Probe | torch.Tensor, seen: Seen, *, run: Forward | None, through: str | None
) -> None:
    """Run the probe again, to see which numbers of maps depend on values; where that fails, none is said to."""
    with contextlib.suppress(ValueError), noting(seen.modules, seen.unsteady):
        _forward(model, probe, {}, lambda *_: None, {}, run=run, through=through)


def _precisions(start: nn.Module, tensor: torch.Tensor, *, run: Forward | None) -> list[torch.dtype]:
    """The types that a module may take its input in, beside the one that it gets: those of its parameters, in order."""
    if not tensor.is_floating_point():
        return []
    held = chain(start.parameters(), start.buffers())
    types = [p.dtype for p in held if p.is_floating_point() or p.is_complex()]
    gets = tensor.dtype if run is not None else placed(start, tensor[:0]).dtype
    others = dict.fromkeys([*types, tensor.dtype])
    return [dtype for dtype in others if dtype != gets and dtype.itemsize > 1][:_PRECISIONS_TRIED]


def _has(part: nn.Module) -> bool:
    return any(map(has_weights, part.modules()))


def _way_on(
    model: nn.Module, start: nn.Module, probe: Probe | torch.Tensor, error: BaseException | None, *, run: Forward | None
) -> str:
    """A sentence on the sub-modules that would take the probe, where it failed of the form of forward's input."""
    if not isinstance(error, Exception) or not is_of_form(start, error):
        return ""
    takers: list[str] = []
    parts = [name for name, part in _named(model).items() if name.count(".") < 2 and part is not start and _has(part)]
    for name in parts[:_PARTS_TRIED]:
        try:
            _forward(model, probe, {}, lambda *_: None, {}, run=run, through=name)
        except Exception:  # it is not this one
            continue
        takers.append(name)
        if len(takers) == 3:
            break
    if not takers:
        return " Say through=NAME, the sub-module to run the probe through."
    return f" Say through={takers[0]!r} to run the probe through that sub-module" + (
        f", or one of {', '.join(map(repr, takers[1:]))}." if takers[1:] else "."
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
    channels_last: Collection[str] = (),
    wait: bool = True,
) -> Snapshot:
    """Copy the effective weights and the feature maps of some layers, and what the numbers of all need, in float32.

    Args:
        model: any module; it is borrowed and given back.
        probe: `[N, C, H, W]`, or clips `[N, C, T, H, W]`, or whatever else the network takes with N first. It may be
            None if you want filters only: then nothing runs, and a layer that computes its weight in forward
            (standardised, fake-quantised) gives the stored weight.
        filter_layers: the names of the layers whose effective weight `[O, I, kH, kW]` you want. The frames of a 3-D
            convolution stand side by side, `[O, I, kH, kT * kW]`; those of a 1-D convolution have one row,
            `[O, I, 1, k]`. Complex ones are given by their magnitude.
        map_layers: the names of the layers whose first output `[N, C, H, W]` you want. Of `[N, C, T, H, W]` you get the
            middle frame, and `[N, C, L]` has one row, `[N, C, 1, L]`. An output of k * N maps is `[k * N, C, H, W]`.
        measured: the layers that numbers are kept of, and what to take of each.
        before: layer -> its weights before the last optimiser step, as `weights_now` gave them; None without.
        step: the snapshot's step.
        epoch: completed training epochs.
        global_step: completed optimiser steps.
        run: runs the probe through a module, `run(module, tensor)`. By default the module is called with the tensor, on
            its own device and in its own precision.
        through: the name of the sub-module that the probe runs through, if the model has no forward of its own.
        channels_last: those of `map_layers` whose output has the channels last; the maps have them second all the same.
        wait: wait until the copies have left a CUDA device. If not, `Snapshot.ready` waits, and any thread may call it.

    Raises:
        ValueError: a name is unknown, a layer has no 4-D weight or output, or the probe cannot go through the model.
    """
    if probe is None and map_layers:
        raise ValueError(f"Feature maps of {', '.join(map_layers)} were asked for without a probe: give one.")
    named = [*model.named_modules()]
    with departures() as ready, _borrowed(model, named, probe) as all_modules:
        modules = _named(model, named)
        with unwatched():
            taken = _Taken(
                modules,
                filter_layers,
                map_layers,
                measured,
                sharded=is_sharded(all_modules),
                at_once=may_write_parameters(model),
                channels_last=channels_last,
            )
        if probe is not None:
            with taken.used:
                _forward(model, probe, taken.watched, taken.record, taken.ran, run=run, through=through)
        with unwatched():
            if taken.sharded:
                reshard(all_modules)  # what FSDP2 gathers for a pass may be of lower precision than what is trained
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


def _borrowed(
    model: nn.Module, named: Sequence[tuple[str, nn.Module]], probe: object
) -> contextlib.AbstractContextManager[Sequence[nn.Module]]:
    return borrow(model, [module for _, module in named], runs=probe is not None)


class _Taken:
    """What is taken of a model while the probe runs through it.

    Args:
        modules: all of the model's, by name.
        filter_layers: the layers whose filters are wanted.
        map_layers: the layers whose feature maps are wanted.
        measured: the layers that numbers are kept of.
        sharded: whether weights must be gathered when nothing runs.
        at_once: whether weights must be taken as soon as their layer has run, for the model may write into them.
        channels_last: the layers whose maps have the channels last.
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
        channels_last: Collection[str] = (),
    ) -> None:
        self.sharded = sharded
        self.filters: dict[str, FloatArray] = {}
        self._whole: dict[str, FloatArray] = {}  # filters as their layer has them, those of 1-D ones without a row
        self.maps: dict[str, FloatArray] = {}
        self.weights: dict[str, FloatArray] = {}
        self.outputs: dict[str, FloatArray] = {}
        self.peaks: dict[str, FloatArray] = {}
        self.ran: dict[str, tuple[int, ...]] = {}
        self._pictured = set(filter_layers)
        self._map_layers = {name: name in channels_last for name in map_layers}
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
        tensor = first_tensor(output)
        self.ran[name] = () if tensor is None else tuple(tensor.shape)
        if name in self._map_layers:
            self.maps[name] = to_host(as_maps(name, output, channels_last=self._map_layers[name]))
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
        used, magnitudes = self.used.filters.get(module), self.used.magnitudes.get(module)
        if name in self._pictured and name not in self.filters:
            shown = used if magnitudes is None else magnitudes
            self._whole[name] = filters_of(name, module) if shown is None else shown
            self.filters[name] = self._whole[name].reshape(with_rows(self._whole[name].shape))
        if name not in self._measured or name in self.weights:
            return
        chosen = self._measured[name].filters
        whole = self._whole.get(name)
        if whole is not None and magnitudes is None and not is_complex(module):
            self.weights[name] = whole if chosen is None else whole[evenly(chosen)]
        elif used is not None:
            self.weights[name] = used if chosen is None or name not in self._pictured else used[evenly(chosen)]
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
    tensor = in_precision(start, _tensor(probe).clone())  # forward may write into what it is given
    record_it = unseen(record)

    def hook(name: str, module: nn.Module, output: object) -> None:
        if not inside_transform():
            record_it(name, module, output)
            return
        with outside_transforms():
            plain = unwrapped(output)
            if first_tensor(plain) is not None:  # else vmap has split it, and this is no output for the probe
                record_it(name, module, plain)

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: hook(name, module, output))
        for name, module in watched.items()
    ]
    try:
        (run or _plain_run)(start, tensor)
    except Exception as error:
        if isinstance(error, Unwatchable):
            raise
        raise ValueError(how_far(model, start, tensor, ran, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    has_run(model)
    if isinstance(probe, Probe) and not probe.is_intact():
        raise ValueError(
            f"The probe {', '.join(probe.names)} has been changed since it was made, so that its feature maps can no "
            "longer be compared with earlier ones. If you write into a probe's tensor, write into a copy of it."
        )


def _plain_run(module: nn.Module, tensor: torch.Tensor) -> None:
    module(placed(module, tensor))


def placed(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device and in the precision of the module's first floating-point parameter or buffer.

    Where a survey has found that the module takes another precision, it is in that. Whole numbers stay whole.

    Args:
        module: where the tensor will go in.
        tensor: the probe.
    """
    held = chain(module.parameters(), module.buffers())
    example = next((p for p in held if p.is_floating_point() and not is_lazy(p)), tensor)
    if not tensor.is_floating_point():
        return sent(tensor, example.device)
    return sent(tensor, example.device).to(_takes.get(module, example.dtype))


def in_precision(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision in which a survey found that a module takes it; as it is where it found none.

    Args:
        module: where the tensor will go in.
        tensor: the probe.
    """
    dtype = _takes.get(module)
    return tensor if dtype is None else tensor.to(dtype)


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
    home = getattr(getattr(type(model), "forward", None), "__module__", "")
    if isinstance(model, torch.jit.ScriptModule) or "forward" in model.__dict__ or home not in _WITHOUT_FORWARD:
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


def _named(model: nn.Module, named: Iterable[tuple[str, nn.Module]] | None = None) -> dict[str, nn.Module]:
    # A compiled module and the one inside it share a name; the inner one, which comes later, is the layer.
    return {name: module for name, _, module in layer_names(model, named)}


def _known(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise ValueError(f"The model has no layer {name!r}: its structure has changed since the layers were chosen.")
    return modules[name]
