"""Names a model's layers, and picks those to watch, by name, glob or type, out of what a survey found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cnnlog.kinds import Kind
from cnnlog.messages import near, some

if TYPE_CHECKING:
    from torch import nn

    from cnnlog.capture.wiring import Behind

AUTO_LIMIT = 8

_WRAPPED = "_orig_mod"  # what torch.compile calls the module that it wraps
_PEFT = {"PeftModel", "PeftMixedModel"}  # by name: PEFT may not be installed

LayerSpec = str | Sequence[str | type[Any]]


@dataclass(frozen=True)
class LayerInfo:
    """What a survey knows about one named module.

    Attributes:
        name: the module's name in the model, without torch.compile's `_orig_mod` and PEFT's `base_model.model`.
        kind: the module's class name.
        module_type: the module's class.
        has_filters: whether it convolved on the probe with a weight `[O, I, k]`, `[O, I, kH, kW]` or
            `[O, I, kT, kH, kW]`; of a layer that did not run, whether it may.
        weight_shape: shape of its effective weight, filters first: in 3-D with the frames side by side,
            `(O, I, kH, kT * kW)`; in 1-D `(O, I, k)`; None without one.
        output_shape: shape of its first output as it is read, `(M, C, H, W)`: of one frame in 3-D, with one row in 1-D,
            the channels second wherever the layer has them; None if it did not run on the probe.
        has_maps: whether its output can be read so, with M as many or k times as many as the probe's N.
        path: the module's name with these, which is what `model.named_modules()` calls it.
        full_shape: shape of its first output with all frames; None if it did not run on the probe.
        has_weights: whether it convolves with its weight, or multiplies with it as a linear layer.
        behind: what its output goes through next; None if it did not run.
        channels_last: whether its output has the channels last, rather than second; None where that cannot be known.
        maps_an_image: how many maps of each channel it makes of an image of the probe.
        is_strip: whether it convolves along one axis only.
        refusal: why it cannot be watched at all, as a sentence without its full stop; empty if it can.
        why_no_filters: why a weight that looks like filters is none; empty if it is.
        why_no_maps: why an output with axes of space is not read as maps; empty if it is.
    """

    name: str
    kind: str
    module_type: type[Any]
    has_filters: bool
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    has_maps: bool = False
    path: str = ""
    full_shape: tuple[int, ...] | None = None
    has_weights: bool = False
    behind: Behind | None = None
    channels_last: bool | None = False
    maps_an_image: int = 1
    is_strip: bool = False
    refusal: str = ""
    why_no_filters: str = ""
    why_no_maps: str = ""

    def has(self, kind: Kind) -> bool:
        """Whether the layer can be watched for a kind.

        Args:
            kind: filters or feature maps.
        """
        return self.has_filters if kind is Kind.FILTERS else self.has_maps


def with_rows(filters: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which filters are pictured: those of a 1-D convolution have one row, `(O, I, 1, k)`.

    Args:
        filters: `(O, I, kH, kW)` or `(O, I, k)`.
    """
    return (*filters[:2], 1, filters[2]) if len(filters) == 3 else filters


def maps_shape(shape: tuple[int, ...], *, channels_last: bool | None) -> tuple[int, ...]:
    """The shape `(M, C, H, W)` in which an output is read: of one frame where it has several, strips have one row.

    Args:
        shape: of the output: `[M, C, L]`, `[M, C, H, W]`, `[M, C, T, H, W]`, or the same with the channels last. Any
            other is returned as it is.
        channels_last: whether the channels are last; None where that is not known, and read as second.

    Example:
        >>> maps_shape((2, 16, 100), channels_last=False), maps_shape((2, 8, 8, 16), channels_last=True)
        ((2, 16, 1, 100), (2, 16, 8, 8))
    """
    if len(shape) not in (3, 4, 5):
        return shape
    maps, *rest = shape
    channels, *space = [rest[-1], *rest[:-1]] if channels_last else rest
    return (maps, channels, *([1, *space] if len(space) == 1 else space[-2:]))


def read_as(infos: Sequence[LayerInfo], *, channels_last: bool | None) -> list[LayerInfo]:
    """The layers, with those outputs read as asked for of which it cannot be known where the channels are.

    Args:
        infos: what `capture.survey` found.
        channels_last: whether they have them last, rather than second; None leaves them open.
    """
    return [
        info
        if channels_last is None or info.channels_last is not None or not info.why_no_maps
        else replace(
            info,
            channels_last=channels_last,
            output_shape=maps_shape(info.full_shape or (), channels_last=channels_last),
            has_maps=True,
            why_no_maps="",
        )
        for info in infos
    ]


def layer_names(
    model: nn.Module, named: Iterable[tuple[str, nn.Module]] | None = None
) -> Iterator[tuple[str, str, nn.Module]]:
    """The name, path and module of everything in `model.named_modules()`.

    The path is what `named_modules` calls it. The name leaves out what wrappers add (torch.compile's `_orig_mod`,
    PEFT's `base_model.model`), so that a layer keeps its name when the model is compiled or gets adapters.

    Args:
        model: any module.
        named: what `model.named_modules()` gives, for those who have it already.
    """
    names: dict[str, str] = {}
    inside: set[int] = set()
    for path, module in model.named_modules() if named is None else named:
        above, _, last = path.rpartition(".")
        hidden = last == _WRAPPED or id(module) in inside
        name = names.get(above, "") if hidden else ".".join(part for part in (names.get(above), last) if part)
        names[path] = name
        cls: Any = type(module)
        if _wraps(cls):
            wrapped = getattr(module, "base_model", None)  # the tuner, or the network itself with prompt tuning
            inside |= {id(wrapped), id(getattr(wrapped, "model", None))} if hasattr(module, "peft_config") else set()
        yield name, path, module


@lru_cache(1024)
def _wraps(cls: type) -> bool:
    return any(base.__name__ in _PEFT for base in cls.__mro__)


def select(infos: Sequence[LayerInfo], wanted: LayerSpec, *, kind: Kind) -> tuple[str, ...]:
    """Names of the layers to watch, in the order of `infos` (execution order).

    Args:
        infos: what `capture.survey` found.
        wanted: `"auto"` (every convolution up to 8; past that the first, and the last of each output resolution,
            never more than 8), one name or glob, or a sequence of names, globs and module types.
        kind: what will be watched there. A layer given by its exact name must have it; a glob or a type keeps those
            of its matches that do. A convolution inside a convolution (the base and the two factors of a LoRA layer)
            is a part of it: a glob that matches both takes the outer one, and so does a type.

    Returns:
        At least one name, each once.

    Raises:
        ValueError: unknown name (close ones are offered), a glob or type that matches nothing usable, a named layer
            that has nothing of the kind, a model without convolutions.

    Example:
        >>> conv = LayerInfo("stem", "Conv2d", object, True, (8, 3, 3, 3), (1, 8, 32, 32), has_maps=True)
        >>> select([conv], "auto", kind=Kind.FILTERS)
        ('stem',)
    """
    if wanted == "auto":
        return _auto(infos, kind)
    items: Sequence[Any] = [wanted] if isinstance(wanted, (str, type)) else list(wanted)
    if not items:
        raise ValueError(f'No layer given to watch for {kind.words}: give names, globs, module types or "auto".')
    chosen: set[str] = set()
    for item in items:
        chosen.update(_matches(infos, item, kind))
    return tuple(info.name for info in infos if info.name in chosen)


def _auto(infos: Sequence[LayerInfo], kind: Kind) -> tuple[str, ...]:
    filter_layers = {info.name for info in infos if info.has_filters}
    convs = [info for info in infos if info.name in filter_layers and outermost(info.name, filter_layers) == info.name]
    if any(info.output_shape is not None for info in convs):
        convs = [info for info in convs if info.output_shape is not None]
    convs = [info for info in convs if info.has(kind)]
    convs = [info for info in convs if not info.is_strip] or convs  # of images, what runs over channels is a gate
    if not convs:
        refused = next((f"{info.refusal}. " for info in infos if info.refusal), "")
        raise ValueError(
            f'{refused}layers="auto" watches 2-D and 3-D convolutions for their {kind.words}, but this model has none '
            f"that {'could be read' if kind is Kind.FILTERS else 'gives [N, C, H, W] for the probe'}, and no 1-D ones; "
            f"name the layers to watch{_some_usable(infos, kind)}."
        )
    if len(convs) > AUTO_LIMIT:
        last_of_resolution = {info.output_shape[-2:] if info.output_shape else info.name: info for info in convs}
        kept = {convs[0].name} | {info.name for info in last_of_resolution.values()}
        convs = _thin([info for info in convs if info.name in kept])
    return tuple(info.name for info in convs)


def _thin(infos: list[LayerInfo]) -> list[LayerInfo]:
    """At most 8, evenly spread, the first and the last among them."""
    if len(infos) <= AUTO_LIMIT:
        return infos
    return [infos[round(i * (len(infos) - 1) / (AUTO_LIMIT - 1))] for i in range(AUTO_LIMIT)]


def outermost(name: str, names: set[str]) -> str:
    """The outermost of some layers that a layer is in, or else its own name.

    Args:
        name: the layer.
        names: the layers that it may lie in.
    """
    parts = name.split(".")
    above = (".".join(parts[:n]) for n in range(1, len(parts)))
    return next((outer for outer in above if outer in names), name)


def _matches(infos: Sequence[LayerInfo], item: Any, kind: Kind) -> list[str]:
    filter_layers = {info.name for info in infos if info.has_filters}
    if isinstance(item, type):
        names = {info.name for info in infos if issubclass(info.module_type, item)}
        names = {outermost(name, filter_layers) if name in filter_layers else name for name in names}
        found = [info for info in infos if info.name in names]
        return _usable_names(found, f"of type {item.__name__}", infos, kind, like="")
    if not isinstance(item, str):
        raise ValueError(
            f"A layer is given by its name, a glob or a module type, not by {item!r} ({type(item).__name__})."
        )
    for info in infos:
        if item in (info.name, info.path):
            if not info.has(kind):
                raise ValueError(_unusable(info, kind) + _some_usable(infos, kind, info.name) + ".")
            return [info.name]
    if any(char in item for char in "*?["):
        matched = {info.name: info for info in infos if fnmatchcase(info.name, item) or fnmatchcase(info.path, item)}
        convs = filter_layers & matched.keys()
        found = [info for name, info in matched.items() if name not in convs or outermost(name, convs) == name]
        return _usable_names(found, f"matching {item!r}", infos, kind, like=item)
    raise ValueError(f"The model has no layer {item!r}{_close(item, infos, kind)}")


def _usable_names(found: list[LayerInfo], meaning: str, infos: Sequence[LayerInfo], kind: Kind, like: str) -> list[str]:
    names = [info.name for info in found if info.has(kind)]
    if names:
        return names
    if found:
        why = next((info.refusal for info in found if info.refusal), "")
        reason = f" ({why})" if why else ""
        raise ValueError(
            f"None of the {len(found)} layers {meaning} has {kind.words}{reason}{_some_usable(infos, kind)}."
        )
    raise ValueError(f"The model has no layer {meaning}{_close(like, infos, kind)}")


def _unusable(info: LayerInfo, kind: Kind) -> str:
    if info.refusal:
        return info.refusal
    which = f"Layer {info.name!r} ({info.kind})"
    why = info.why_no_filters if kind is Kind.FILTERS else info.why_no_maps
    if why:
        return f"{which} has no {kind.words}: {why}"
    if kind is Kind.FILTERS:
        arrived = f"its weight is {list(info.weight_shape)}" if info.weight_shape else "it has none of its own"
        return f"{which} has no filters: expected a 4-D weight [O, I, kH, kW], but {arrived}"
    if info.output_shape is None:
        return f"{which} has no feature maps: it did not run on the probe"
    return (
        f"{which} has no feature maps: expected an output [N, C, H, W] with the probe's N, "
        f"but it is {list(info.output_shape)}"
    )


def _close(name: str, infos: Sequence[LayerInfo], kind: Kind) -> str:
    """The end of an error sentence: names that look like the one asked for, else some that would do."""
    names = {info.name.lower(): info.name for info in infos if info.name}
    bare = name.lower().strip("*?")
    close = [names[match] for match in near(bare, list(names))]
    close += [known for known in names.values() if known.endswith(f".{name}") and known not in close][:2]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else _some_usable(infos, kind) + "."


def _some_usable(infos: Sequence[LayerInfo], kind: Kind, inside: str = "") -> str:
    """The end of an error sentence: layers that would do, of those inside a layer first of all."""
    names = [info.name for info in infos if info.has(kind)]
    names = [name for name in names if name.startswith(f"{inside}.")] or names
    if not names:
        return ""
    return f"; layers with {kind.words}: {some(map(repr, names), 5)}"
