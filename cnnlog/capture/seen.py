"""What a survey sees of a model's layers while the probe runs, and what follows of it for each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cnnlog.capture.layers import LayerInfo, maps_shape
from cnnlog.capture.reading import first_tensor, is_channels_last, shape_of
from cnnlog.capture.sharding import plain_type
from cnnlog.capture.used_weights import (
    has_one_weight,
    has_weights,
    is_convolution,
    may_convolve,
    weight_shape,
)
from cnnlog.capture.wiring import Wiring, is_norm

_NO_CONVOLUTION = "on the probe it did not convolve with its weight, but did something else with it"


class Seen:
    """What a survey sees of the layers while the probe runs.

    Args:
        modules: those that can be looked at, by their names.

    Attributes:
        modules: the same.
        wiring: what lies behind them, and where their channels are.
        followed: whether the wiring was there when the probe ran.
        outputs: layer -> the shape of its first output, of those that ran, in execution order.
        axes: layer -> the axis of its output that holds the channels; None where it is not known.
        weights: layer -> the shape of its weight.
        unsteady: the layers whose number of maps depends on values.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.wiring = Wiring(
            layers={module: name for name, module in modules.items() if has_weights(module)},
            norms={module: name for name, module in modules.items() if is_norm(module)},
            modules=dict.fromkeys(modules.values()),
        )
        self.followed = False
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.axes: dict[str, int | None] = {}
        self.weights: dict[str, tuple[int, ...] | None] = {}
        self.unsteady: set[str] = set()

    def record(self, name: str, module: nn.Module, output: object) -> None:
        """A module has run: its first call counts."""
        if name not in self.outputs:
            tensor = first_tensor(output)
            self.outputs[name] = shape_of(output)
            self.axes[name] = None if tensor is None else self.wiring.axes.of(tensor)
            self.weights[name] = weight_shape(module)

    def forget(self) -> None:
        """Know nothing: the pass has failed, and another one is tried."""
        self.wiring.forget()
        self.outputs.clear()
        self.weights.clear()

    def complete(self) -> None:
        """Take the shapes of the weights of layers that did not run."""
        for name, module in self.modules.items():
            if name not in self.weights:
                self.weights[name] = weight_shape(module)


class Infos:
    """Says what a survey has seen of a layer.

    Args:
        seen: in the pass.
        images: how many images the probe has; 0 without one.
    """

    def __init__(self, seen: Seen, *, images: int) -> None:
        self._seen, self._images = seen, images

    def of(self, name: str, path: str) -> LayerInfo:
        """What is known of a layer.

        Args:
            name: its name.
            path: what `named_modules` calls it.
        """
        seen, module = self._seen, self._seen.modules[name]
        weight, shape = seen.weights[name], seen.outputs.get(name, ())
        if len(weight or ()) in (3, 4) and not has_one_weight(module):
            weight = None
        ran = name in seen.outputs and seen.followed
        is_filters = len(weight or ()) in (3, 4)
        convolves = is_filters and (
            is_convolution(module) or module in seen.wiring.convolved or (not ran and may_convolve(module))
        )
        convolved = module in seen.wiring.convolved
        axis = seen.axes.get(name)
        last = is_channels_last(module, shape, axis, convolved=convolved, followed=seen.followed)
        why_no_maps = self._why_no_maps(name, shape, axis)
        if why_no_maps:
            last = bool(last)  # to say it would not help
        elif last is None:
            why_no_maps = (
                f"which axis of its output {list(shape)} holds the channels cannot be known; say channels_last=True or "
                "channels_last=False"
            )
        return LayerInfo(
            name=name,
            kind=plain_type(module).__name__,
            module_type=plain_type(module),
            has_filters=convolves,
            weight_shape=weight,
            output_shape=maps_shape(shape, channels_last=last) or None,
            has_maps=len(shape) in (3, 4, 5) and not why_no_maps,
            path=path,
            full_shape=shape if name in seen.outputs else None,
            has_weights=weight is not None and has_weights(module) and (convolves or not is_filters),
            behind=seen.wiring.behind(name),
            channels_last=last,
            maps_an_image=max(1, shape[0] // self._images) if shape and self._images else 1,
            is_strip=convolves and len(weight or ()) == 3,
            why_no_filters=_NO_CONVOLUTION if ran and is_filters and not convolves else "",
            why_no_maps=why_no_maps,
        )

    def _why_no_maps(self, name: str, shape: tuple[int, ...], axis: int | None) -> str:
        if len(shape) not in (3, 4, 5):
            return ""
        if shape[0] % self._images or 0 in shape:
            return (
                f"expected an output [N, C, H, W] with the probe's N or k * N maps, but it is {list(shape)} for "
                f"N = {self._images}"
            )
        if name in self._seen.unsteady:
            return f"how many it gives depends on what the network finds: its output is {list(shape)} on this probe"
        if axis == 0:
            return f"its output {list(shape)} has no axis of images: the first one holds its channels"
        return ""
