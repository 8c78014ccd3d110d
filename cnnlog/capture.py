"""Borrows a model, looks at it with hooks, and gives it back byte for byte.

Torch ends here: a `Snapshot` holds NumPy arrays only. What has to be kept still, and why, is measured in the tests of
inertness over a zoo of awkward models.
"""

from __future__ import annotations

import copy
import difflib
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from cnnlog.layers import LayerInfo
from cnnlog.probe import Probe
from cnnlog.rng import held_generators, kept_rng
from cnnlog.sharding import (
    held,
    is_sharded,
    is_spread,
    plain_type,
    refuse_flattened,
    reshard,
    sharded,
    whole,
    whole_parameters,
)
from cnnlog.snapshot import FloatArray, Snapshot

Forward = Callable[[nn.Module, torch.Tensor], object]
"""Runs the module on the probe, e.g. under a precision plugin: `run(module, tensor)`; what it returns is ignored."""

_ALWAYS_COPIED = 2**20  # bytes: smaller tensor attributes are copied at every loan, larger ones as parameters are
_SAME_SIZE_INT = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_CONVOLUTIONS = {torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d}
_TRANSPOSED = {torch.conv_transpose2d, torch.conv_transpose3d}

_WRAPPED = "_orig_mod"  # what torch.compile calls the module that it wraps
_PEFT = {"PeftModel", "PeftMixedModel"}  # by name: PEFT may not be installed

# Where a class has its `forward` from if it defines none.
_WITHOUT_FORWARD = ("torch.nn.modules.module", "lightning.pytorch.core.module", "pytorch_lightning.core.module")

# The CUDA streams on which copies are on their way to the host, while a capture is under way.
_leaving: ContextVar[set[torch.cuda.Stream] | None] = ContextVar("_leaving", default=None)

# Does this model's forward write into its own parameters (momentum encoders do)? Known after its first loan.
_writes_parameters: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextmanager
def borrow(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the model for forward passes in eval mode without gradients; give everything back afterwards.

    Given back, also after an exception: training flags, buffers, sub-modules, attributes (and one level of the
    contents of lists, dicts, sets, deques and arrays), parameters, the states of all random number generators.
    `self.log` in forward does nothing, compiled models run eagerly, and no recompilation follows.

    Parameters are copied on a model's first loan, and on later ones only if an earlier one saw forward write them.
    A model that is sharded over several processes (FSDP2, DTensor) must be borrowed by all of them at the same time.

    Raises:
        ValueError: the model is a ScriptModule, has uninitialised lazy parameters, or is sharded by FSDP 1 or ZeRO 3.
        RuntimeError: forward wrote into parameters of which there was no copy.
    """
    refuse(model)
    with ExitStack() as stack:
        stack.enter_context(sharded(model))
        loan = _Loan(model)
        generators = held_generators([v for m in loan.modules for v in m.__dict__.values()], depth=1)
        stack.enter_context(kept_rng(generators))
        # The cache of a training step around us keeps no cast of ours, which has no graph.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        stack.callback(loan.give_back)
        loan.still()
        # not inference_mode: a tensor that forward caches would fail in later training.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and importing it costs seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield model


def refuse(model: nn.Module) -> None:
    """Raise ValueError for a model that cannot be looked at: a ScriptModule, lazy or flattened parameters."""
    refuse_flattened(model)
    for name, _, module in layer_names(model):
        if isinstance(module, torch.jit.ScriptModule):
            where = f"layer {name!r}" if name else "the model"
            raise ValueError(
                f"A ScriptModule cannot be watched, and {where} is one ({type(module).__name__}): its inner "
                "layers take no hooks. Train the nn.Module it was scripted or traced from."
            )
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and is_lazy(tensor):
                raise ValueError(
                    f"Layer {name!r} ({type(module).__name__}) is lazy and its {key!r} has no shape yet: "
                    "run the model once on a batch before training, so that every parameter is initialised."
                )


def survey(
    model: nn.Module, probe: Probe | torch.Tensor | None, *, run: Forward | None = None, through: str | None = None
) -> tuple[LayerInfo, ...]:
    """Find out what could be watched, by one dry run of the probe.

    Args:
        model: any module; it is borrowed and given back.
        probe: `[N, C, H, W]`, or clips `[N, C, T, H, W]`; without one nothing runs and no output shape is known.
        run: executes the forward, `run(module, tensor)`; default: `module(tensor)` on the model's device and dtype.
        through: name of the sub-module through which the probe runs, for models without a forward of their own.

    Returns:
        Every named module: first those that ran, in execution order, then the others in order of registration.

    Raises:
        ValueError: the model cannot be looked at, or the probe cannot go through it (the layers that ran are named).
    """
    outputs: dict[str, tuple[int, ...]] = {}
    weights: dict[str, tuple[int, ...] | None] = {}
    images = None if probe is None else len(_tensor(probe))

    def record(name: str, module: nn.Module, output: object) -> None:
        if name not in outputs:
            outputs[name] = _maps_shape(output)
            weights[name] = _weight_shape(module)

    with borrow(model):
        modules = _named(model)
        paths = {name: path for name, path, _ in layer_names(model)}
        if probe is not None:
            _forward(model, probe, modules, record, outputs, run=run, through=through)
        for name, module in modules.items():
            if name not in weights:
                weights[name] = _weight_shape(module)
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
        )
        for name in order
    )


def capture(
    model: nn.Module,
    probe: Probe | torch.Tensor | None,
    *,
    filter_layers: Sequence[str],
    map_layers: Sequence[str],
    step: int,
    epoch: int,
    global_step: int,
    run: Forward | None = None,
    through: str | None = None,
    wait: bool = True,
) -> Snapshot:
    """Copy the effective weights and the feature maps of some layers, at full size, in float32.

    Args:
        model: any module; it is borrowed and given back.
        probe: `[N, C, H, W]`, or clips `[N, C, T, H, W]`; may be None where only filters are wanted: then nothing runs,
            and weights that a forward computes for itself (standardised, fake-quantised ones) are as they are held.
        filter_layers: names of the layers whose effective weight `[O, I, kH, kW]` is wanted; of a 3-D convolution its
            frames stand side by side, `[O, I, kH, kT * kW]`.
        map_layers: names of the layers whose first output `[N, C, H, W]` is wanted; of `[N, C, T, H, W]` it is the
            middle frame.
        step: the snapshot's step; likewise `epoch` and `global_step`.
        epoch: completed training epochs.
        global_step: completed optimiser steps.
        run: as in `survey`.
        through: as in `survey`.
        wait: until the copies have left a CUDA device; else `Snapshot.ready` does, and another thread may call it.

    Raises:
        ValueError: a name is unknown, a layer has no 4-D weight or output, or the probe cannot go through the model.
    """
    filters: dict[str, FloatArray] = {}
    maps: dict[str, FloatArray] = {}
    ran: dict[str, tuple[int, ...]] = {}
    if probe is None and map_layers:
        raise ValueError(f"Feature maps of {', '.join(map_layers)} were asked for without a probe: give one.")

    def record(name: str, module: nn.Module, output: object) -> None:
        if name in ran:  # one module may run several times: its first call counts
            return
        ran[name] = _shape(output)
        if name in wanted_maps:
            maps[name] = _feature_maps(name, output)
        if name in wanted_filters:
            if module in used.filters:
                filters[name] = used.filters[module]
            elif not spread:
                filters[name] = _filters(name, module)

    spread = is_sharded(model)
    wanted_filters, wanted_maps = set(filter_layers), set(map_layers)
    with _departures() as ready, borrow(model):
        modules = _named(model)
        watched = {name: _known(modules, name) for name in dict.fromkeys([*filter_layers, *map_layers])}
        if probe is not None:
            with _UsedWeights([watched[name] for name in filter_layers]) as used:
                _forward(model, probe, watched, record, ran, run=run, through=through)
        reshard(model)  # what FSDP2 gathers for a forward pass may be of lower precision than what is trained
        for name in filter_layers:
            if name not in filters:  # of a sharded model, or an auxiliary head, say, that does not run in eval mode
                filters[name] = _filters(name, watched[name])
    missing = [name for name in map_layers if name not in maps]
    if missing:
        raise ValueError(f"No feature maps: {', '.join(map(repr, missing))} did not run on the probe.")
    arrived = ready()
    if wait and arrived is not None:
        arrived()
    return Snapshot(
        step=step,
        epoch=epoch,
        global_step=global_step,
        filters={name: filters[name] for name in filter_layers},
        feature_maps={name: maps[name] for name in map_layers},
        ready=None if wait else arrived,
    )


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
    """The tensor on the device and in the precision of the module's first floating-point parameter or buffer."""
    example = next((p for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()), tensor)
    return sent(tensor, example.device).to(example.dtype)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on that device; what is sent to CUDA waits for nothing that is still to be done there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
    """The module through which the probe runs: the model, unless it has no forward of its own."""
    if through is not None:
        modules = _named(model)
        if through not in modules:
            close = difflib.get_close_matches(through, modules, n=3) or [name for name, _ in model.named_children()]
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


def layer_names(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Name, path and module of everything in `model.named_modules()`.

    The path is the name there. The name leaves out what wrappers add to it (torch.compile's `_orig_mod`, PEFT's
    `base_model.model`), so that a layer keeps its name when the model is compiled or gets adapters.
    """
    names: dict[str, str] = {}
    inside: set[int] = set()
    for path, module in model.named_modules():
        above, _, last = path.rpartition(".")
        hidden = last == _WRAPPED or id(module) in inside
        name = names.get(above, "") if hidden else ".".join(part for part in (names.get(above), last) if part)
        names[path] = name
        if any(cls.__name__ in _PEFT for cls in type(module).__mro__):
            wrapped = getattr(module, "base_model", None)  # the tuner, or the network itself with prompt tuning
            inside |= {id(wrapped), id(getattr(wrapped, "model", None))} if hasattr(module, "peft_config") else set()
        yield name, path, module


def _named(model: nn.Module) -> dict[str, nn.Module]:
    # A compiled module and the one inside it share a name; the inner one, which comes later, is the layer.
    return {name: module for name, _, module in layer_names(model)}


def _known(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise ValueError(f"The model has no layer {name!r}: its structure has changed since the layers were chosen.")
    return modules[name]


# --- outputs and weights ---------------------------------------------------------------------------------------------


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


def _array(tensor: torch.Tensor) -> FloatArray:
    """An owned, C-contiguous float32 copy; bf16 and quantised tensors are converted.

    In a capture, what comes from CUDA has only been sent for: the copy is in order with whatever is done to the tensor
    later on the same stream, but has not arrived yet.
    """
    tensor = whole(tensor)
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    streams = _leaving.get()
    if tensor.is_cuda and streams is not None:
        converted = tensor.detach().float().contiguous()
        host = torch.empty(converted.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(converted, non_blocking=True)
        streams.add(torch.cuda.current_stream(tensor.device))
        arriving: FloatArray = host.numpy()
        return arriving
    # contiguous before NumPy sees it: channels_last strides would survive a plain copy
    copied = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    array: FloatArray = copied.numpy()
    return array


@contextmanager
def _departures() -> Iterator[Callable[[], Callable[[], None] | None]]:
    """Let `_array` send for copies without waiting; yields what tells how to wait for those sent for so far."""
    streams: set[torch.cuda.Stream] = set()

    def ready() -> Callable[[], None] | None:
        events = [stream.record_event() for stream in streams]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return wait if events else None

    token = _leaving.set(streams)
    try:
        yield ready
    finally:
        _leaving.reset(token)


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
    return _array(tensor if tensor.dim() == 4 else tensor[:, :, tensor.shape[2] // 2])


def _filters(name: str, module: nn.Module) -> FloatArray:
    weight = _weight(module)
    if weight is None or weight.dim() != 4:
        arrived = "has none" if weight is None else f"is {list(weight.shape)}"
        raise ValueError(f"Layer {name!r} has no filters: expected a weight [O, I, kH, kW], but it {arrived}.")
    return _array(weight)


def _weight_shape(module: Any) -> tuple[int, ...] | None:
    while _is_adapted(module):
        module = module.get_base_layer()
    weight = _weight(module, data=False)
    return None if weight is None else tuple(weight.shape)


def _weight(module: Any, *, data: bool = True) -> torch.Tensor | None:
    """The weight that the layer holds, filters first, frames side by side; None where the module has none.

    What its forward makes of the weight before it convolves (weight standardisation, fake quantisation) is not in it:
    that is what `_UsedWeights` sees. Read in eval mode, where spectral norm does not advance.

    Args:
        module: a layer.
        data: whether the values are wanted, which of a sharded model are gathered, and not the shape alone.
    """
    if _is_adapted(module):
        with whole_parameters(module.modules()):
            return _adapted_weight(module)
    # Old-style weight norm, spectral norm and pruning set the weight in a pre-hook; after an optimiser step without a
    # forward it is stale.
    computes = (BasePruningMethod, SpectralNorm, WeightNorm)
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, computes)]
    parts = [module] if hooks else []
    if is_parametrized(module, "weight"):
        parts += [module, *module.parametrizations.modules()]
    with whole_parameters(parts):
        for hook in hooks:
            hook(module, ())
        weight = getattr(module, "weight", None)
        if callable(weight) and not isinstance(weight, (torch.Tensor, nn.Module)):
            weight = weight()  # converted quantised convolutions
    if not isinstance(weight, torch.Tensor):
        return None
    if weight.is_quantized:
        weight = weight.dequantize()
    if is_spread(weight):
        weight = whole(weight) if data else torch.empty(weight.shape, device="meta")
    transposed = getattr(module, "transposed", False)
    return _filters_first(weight, getattr(module, "groups", 1) if transposed else None)


def _filters_first(weight: torch.Tensor, transposed_groups: int | None) -> torch.Tensor:
    """`[O, I/groups, kH, kW]` of a convolution's weight; frames stand side by side, `[O, I/groups, kH, kT * kW]`.

    Args:
        weight: 4-D or 5-D; any other is returned as it is.
        transposed_groups: the groups of a transposed convolution, whose weight is `[I, O/groups, ...]`; else None.
    """
    if weight.dim() not in (4, 5):
        return weight
    if transposed_groups is not None:
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(transposed_groups, inputs // transposed_groups, outputs, *kernel).transpose(1, 2)
        weight = grouped.reshape(transposed_groups * outputs, inputs // transposed_groups, *kernel)
    return weight if weight.dim() == 4 else weight.transpose(2, 3).flatten(3)


def _is_adapted(module: Any) -> bool:
    """Whether PEFT has laid an adapter around this layer."""
    return hasattr(module, "get_base_layer") and hasattr(module, "merge") and hasattr(module, "active_adapters")


def _unmerges(module: Any) -> bool:
    """Whether forward will take an adapter out of the base weight; it does so through `.data`, which counts nothing."""
    return _is_adapted(module) and bool(module.disable_adapters and module.merged)


def _adapted_weight(module: Any) -> torch.Tensor | None:
    """The base weight and what the active adapters make of it, of any of PEFT's methods: a copy is merged by PEFT."""
    if module.disable_adapters != module.merged:  # forward takes the base weight as it is
        return _weight(module.get_base_layer())
    hooks = {
        id(value): type(value)()  # a copied hook would take along whatever it is bound to
        for part in module.modules()
        for key, value in part.__dict__.items()
        if "_hooks" in key
    }
    copied = copy.deepcopy(module, hooks)
    copied.unmerge() if module.merged else copied.merge()
    return _weight(copied.get_base_layer())


class _UsedWeights(TorchFunctionMode):
    """Sees which weights the convolutions of some layers are computed with, while a probe runs.

    A layer may compute its weight anew in each forward (weight standardisation, fake quantisation with a batch norm
    folded in, a parametrisation that draws), so that what it holds is not what it convolves with. A weight of another
    shape than the layer's own is not its filters (it is mixed for each image, say), and an adapted layer convolves
    in parts; what these hold counts.

    Attributes:
        filters: layer -> the weight of the first convolution in its own forward, `[O, I, kH, kW]`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.filters: dict[nn.Module, FloatArray] = {}
        self._shapes = {layer: _weight_shape(layer) for layer in layers if not _is_adapted(layer)}
        self._sharded = {
            layer: parameter.dtype for layer in layers for parameter in layer.parameters() if is_spread(parameter)
        }
        self._running: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _UsedWeights:
        # A layer's parts, too: what they convolve with is theirs.
        for module in {part: None for layer in self._shapes for part in layer.modules()}:
            self._handles.append(module.register_forward_pre_hook(lambda module, _: self._running.append(module)))
            ended = module.register_forward_hook(lambda module, *_: self._ended(module), always_call=True)
            self._handles.append(ended)
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        for handle in self._handles:
            handle.remove()

    def _ended(self, module: nn.Module) -> None:
        del self._running[self._running.index(module) :]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._running and func in _CONVOLUTIONS:
            self._see(self._running[-1], func, args, kwargs)
        return func(*args, **kwargs)

    def _see(self, layer: nn.Module, func: Any, args: Any, kwargs: Any) -> None:
        weight = kwargs["weight"] if "weight" in kwargs else args[1]
        if layer not in self._shapes or layer in self.filters or not isinstance(weight, torch.Tensor):
            return
        if weight.dtype != self._sharded.get(layer, weight.dtype):
            return  # FSDP2 computes in a lower precision than it trains in, which small changes do not show in
        groups = getattr(layer, "groups", 1) if func in _TRANSPOSED else None
        filters = _filters_first(whole(weight), groups)
        if tuple(filters.shape) == self._shapes[layer]:
            self.filters[layer] = _array(filters)


# --- the loan --------------------------------------------------------------------------------------------------------


class _Loan:
    """What a model was before it was lent.

    `_parameters` is never re-bound: sharding (FSDP2) swaps its entries in forward and loses track otherwise.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = list(model.modules())
        self._training = [module.training for module in self.modules]
        self._attributes = [
            {key: value for key, value in module.__dict__.items() if key not in ("training", "_parameters")}
            for module in self.modules
        ]
        self._parameter_names = [set(module._parameters) for module in self.modules]
        parameters = {id(p): p for module in self.modules for p in module._parameters.values() if p is not None}
        buffers = {id(b): b for module in self.modules for b in module._buffers.values() if b is not None}

        self._contents: list[tuple[Any, Any]] = []
        plain: dict[int, torch.Tensor] = {}  # tensors that are neither parameters nor buffers
        for attributes in self._attributes:
            for value in attributes.values():
                self._keep_contents(value, plain)
        self._copied = _writes_parameters.get(model, True) or any(map(_unmerges, self.modules))
        small = {key: tensor for key, tensor in plain.items() if tensor.nbytes < _ALWAYS_COPIED}
        with torch.no_grad():
            self._always = [_Kept(tensor, copy=True) for tensor in ({**small, **buffers}).values()]
            self._seldom = [
                _Kept(tensor, copy=self._copied)
                for key, tensor in ({**plain, **parameters}).items()
                if key not in small and key not in buffers
            ]

    def _keep_contents(self, value: Any, plain: dict[int, torch.Tensor]) -> None:
        if isinstance(value, dict):
            self._contents.append((value, dict(value)))
        elif isinstance(value, set):
            self._contents.append((value, set(value)))
        elif isinstance(value, (list, deque)):
            self._contents.append((value, list(value)))
        elif isinstance(value, np.ndarray):
            self._contents.append((value, value.copy()))
        elif isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            plain[id(value)] = value
        if isinstance(value, (dict, list, deque)):
            for part in value.values() if isinstance(value, dict) else value:
                if isinstance(part, torch.Tensor):
                    self._keep_contents(part, plain)

    def still(self) -> None:
        """Eval mode, flag by flag (`.eval()` merges LoRA, `.train()` thaws what the user froze), and no logging."""
        for module in self.modules:
            module.training = False
            if callable(getattr(module, "log", None)) and callable(getattr(module, "log_dict", None)):
                module.__dict__["log"] = module.__dict__["log_dict"] = lambda *_, **__: None

    def give_back(self) -> None:
        """Undo everything, in place where others may hold the same object."""
        for module, attributes, names in zip(self.modules, self._attributes, self._parameter_names, strict=True):
            _refill(module.__dict__, attributes, except_for=("training", "_parameters"))
            for name in set(module._parameters) - names:
                del module._parameters[name]
        for container, content in self._contents:
            _restore_content(container, content)
        for module, training in zip(self.modules, self._training, strict=True):
            module.training = training
        with torch.no_grad():
            for kept in self._always:
                kept.give_back(tell=False)
            tell = self.model not in _writes_parameters
            written = [kept for kept in self._seldom if kept.give_back(tell=tell)]
        _writes_parameters[self.model] = bool(written) or _writes_parameters.get(self.model, False)
        lost = [kept for kept in written if kept.lost]
        if lost:
            shapes = ", ".join(str(list(kept.tensor.shape)) for kept in lost[:3])
            raise RuntimeError(
                f"{type(self.model).__name__}.forward in eval mode wrote into parameters {shapes}, which it did not do "
                "when it was first run: this probe has changed them. From now on they are copied before each probe."
            )


class _Kept:
    """One tensor: what it pointed to and, unless it is large and never written, a copy of its bytes."""

    def __init__(self, tensor: torch.Tensor, *, copy: bool) -> None:
        self.tensor = tensor
        self.lost = False
        self._held = held(tensor)  # a process's own part can be compared without the others
        self._alias = self._held.detach()
        self._version = _version(self._held)
        self._pointer = _pointer(self._held)
        self._requires_grad = tensor.requires_grad
        self._copy = self._alias.clone() if copy else None

    def give_back(self, *, tell: bool) -> bool:
        """Restore the bytes; tell whether forward had written them, or may have if nobody wants to know for certain."""
        if self.tensor.requires_grad != self._requires_grad:
            self.tensor.requires_grad_(self._requires_grad)
        tensor = self._held
        moved = _pointer(tensor) != self._pointer or tensor.shape != self._alias.shape
        if moved:
            tensor.data = self._alias
        bumped = _version(tensor) != self._version
        if self._copy is None:
            self.lost = bumped
            return bumped or moved
        changed = (not tell and _comparing_waits(self._alias)) or not _same_bytes(self._alias, self._copy)
        if changed:
            # through an alias without a version counter of its user: a graph that saved the tensor stays valid
            self._alias.data.copy_(self._copy)
        return changed or bumped or moved


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided and not _is_wrapper(tensor) else id(tensor)


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """A tensor subclass without storage of its own (torchao)."""
    return type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer)


def _comparing_waits(tensor: torch.Tensor) -> bool:
    """Whether a comparison would hold this thread until the device has done all its work; a copy would not."""
    return tensor.is_cuda and not _is_wrapper(tensor)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN equals NaN, and -0.0 differs from 0.0."""
    integer = _SAME_SIZE_INT.get(a.element_size())
    if integer is None or a.is_quantized or a.layout is not torch.strided or _is_wrapper(a):
        return torch.equal(a, b)
    return torch.equal(a.view(integer), b.view(integer))


def _refill(now: MutableMapping[str, Any], before: Mapping[str, Any], *, except_for: Sequence[str] = ()) -> None:
    for key in [key for key in now if key not in before and key not in except_for]:
        del now[key]
    for key, value in before.items():
        if key not in now or now[key] is not value:
            now[key] = value


def _restore_content(container: Any, content: Any) -> None:
    """Put back what a container held; untouched ones are left alone, so that no guard on them is invalidated."""
    if isinstance(container, dict):
        if [*map(id, container.values())] != [*map(id, content.values())] or [*container] != [*content]:
            container.clear()
            container.update(content)
    elif isinstance(container, np.ndarray):
        if container.tobytes() != content.tobytes():
            np.copyto(container, content)
    elif isinstance(container, set):
        if container != content:
            container.clear()
            container.update(content)
    elif [*map(id, container)] != [*map(id, content)]:
        container.clear()
        container.extend(content)
