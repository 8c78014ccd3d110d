"""What can be watched is watched: networks of many kinds, built by hand, and the right values of what they give."""

from __future__ import annotations

import functools
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layer_table import layer_table
from cnnlog.capture.layers import LayerInfo, read_as, select
from cnnlog.capture.measuring import measured
from cnnlog.kinds import Kind
from cnnlog.snapshot import Snapshot


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def by_name(infos: tuple[LayerInfo, ...]) -> dict[str, LayerInfo]:
    return {info.name: info for info in infos}


def look(net: nn.Module, probe: torch.Tensor, *, maps: Any = "auto", filters: Any = "auto", **more: Any) -> Snapshot:
    """A snapshot as the monitors take it: surveyed, chosen, captured."""
    infos = survey(net, probe, **more)
    chosen = {kind: select(infos, asked, kind=kind) for kind, asked in zip(Kind, (filters, maps), strict=True)}
    return capture(
        net,
        probe,
        filter_layers=chosen[Kind.FILTERS],
        map_layers=chosen[Kind.FEATURE_MAPS],
        channels_last=[info.name for info in infos if info.channels_last],
        measured=measured(infos),
        step=0,
        epoch=0,
        global_step=0,
        **more,
    )


# --- axes: each network, the layer, and what its maps are of a run by hand


class Permuting(nn.Module):
    """A ConvNeXt block: between its permutations everything has the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm(6)
        self.wide, self.act, self.narrow = nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = self.narrow(self.act(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class Norm2d(nn.LayerNorm):
    """Is a LayerNorm, and has its channels second, as timm's has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Shuffling(nn.Module):
    """Splits the axis of the channels and puts it together again, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 6, 3), Shuffle()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv(x))


class Shuffle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Windows(nn.Module):
    """Tokens: cut into windows, mixed along the channels, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.mix = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 8)
        self.back = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2)).unflatten(1, (4, 4))
        cut = x.reshape(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        joined = self.mix(cut).reshape(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 8)
        return self.back(joined)


AXES: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "a convolution": (Permuting, "conv", False),
    "a norm over the last axis": (Permuting, "norm", True),
    "a linear layer": (Permuting, "wide", True),
    "an activation between": (Permuting, "act", True),
    "a norm that moves the axis itself": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Norm2d(8)), "1", False),
    "split and put together": (Shuffling, "shuffle", False),
    "windows of tokens": (Windows, "back", True),
    "a patch of tokens": (Windows, "patch", False),
}


@pytest.mark.parametrize("case", AXES)
def test_outputs_are_read_along_the_axis_that_holds_the_channels(case: str) -> None:
    torch.manual_seed(0)
    build, layer, last = AXES[case]
    net, probe = build(), images(2, 3, 8, 8)
    outputs = []
    handle = net.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[-1]))
    net.eval()(probe)
    handle.remove()
    expected = outputs[0].detach().movedim(-1, 1) if last else outputs[0].detach()
    info = by_name(survey(net, probe))[layer]
    assert (info.channels_last, info.output_shape, info.has_maps) == (last, tuple(expected.shape), True)
    taken = look(net, probe, maps=[layer]).feature_maps[layer]
    np.testing.assert_array_equal(taken, expected.numpy())


class Attention(nn.Module):
    """Behind an attention nobody can tell which axis holds the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mixed = nn.Conv2d(3, 4, 3), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.mixed(torch.einsum("nchw,ncvw->nhvc", x, x))


def test_where_the_axis_cannot_be_known_it_is_asked_for_by_name() -> None:
    net, probe = Attention(), images(1, 3, 9, 7)
    infos = survey(net, probe)
    with pytest.raises(ValueError, match=r"'mixed' \(Identity\).*\[1, 7, 7, 4\].*say channels_last=True"):
        select(infos, "mixed", kind=Kind.FEATURE_MAPS)
    for last, shape in ((True, (1, 4, 7, 7)), (False, (1, 7, 7, 4))):
        read = by_name(tuple(read_as(infos, channels_last=last)))
        assert (read["mixed"].output_shape, read["mixed"].has_maps) == (shape, True)
        assert read["conv"].output_shape == (1, 4, 7, 5)  # of which it is known


# --- what convolves


class Response(nn.Module):
    """A global response normalisation, with a weight `[1, 1, 1, C]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight * x * x.norm(dim=(2, 3), keepdim=True).movedim(1, -1).movedim(-1, 1)


class Scaled(nn.Module):
    """A weight that looks like filters and only scales."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.mean((1, 2, 3)).view(1, -1, 1, 1)


class Modulated(nn.Module):
    """A convolution with a weight `[1, O, I, k, k]` that is made anew for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 6, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        weight = self.weight * x.mean((2, 3)).view(n, 1, 3, 1, 1)
        return F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=1, groups=n).view(n, 6, *x.shape[2:])


class Own(nn.Module):
    """A convolution of somebody's own, standardised."""

    def __init__(self, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 3, *kernel))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean()
        return F.conv2d(x, weight) if weight.dim() == 4 else F.conv1d(x, weight)


@pytest.mark.parametrize(("layer", "reason"), [(lambda: Response(6), "did not convolve"), (Scaled, "did not convolve")])
def test_what_only_has_a_weight_is_no_convolution(layer: Callable[[], nn.Module], reason: str) -> None:
    net, probe = nn.Sequential(nn.Conv2d(3, 6, 3), layer(), nn.ReLU()), images(2, 3, 8, 8)
    infos = survey(net, probe)
    assert select(infos, "auto", kind=Kind.FILTERS) == select(infos, "auto", kind=Kind.FEATURE_MAPS) == ("0",)
    assert [taken.name for taken in measured(infos)] == ["0"]
    with pytest.raises(ValueError, match=rf"'1' .* has no filters: .*{reason}"):
        select(infos, "1", kind=Kind.FILTERS)
    assert by_name(infos)["1"].has_maps


def test_without_a_probe_a_scale_for_each_channel_is_not_taken_for_filters() -> None:
    infos = survey(nn.Sequential(nn.Conv2d(3, 6, 3), Response(6), Own(3, 3)), None)
    assert select(infos, "auto", kind=Kind.FILTERS) == ("0", "2")


@pytest.mark.parametrize("count", [1, 2])
def test_of_filters_made_for_each_image_those_of_the_first_are_shown(count: int) -> None:
    layer, probe = Modulated(), images(count, 3, 8, 8)
    taken = look(nn.Sequential(layer), probe)
    used = layer.weight[0] * probe[0].mean((1, 2)).view(1, 3, 1, 1)
    np.testing.assert_allclose(taken.filters["0"], used.detach().numpy(), rtol=1e-6)
    assert taken.feature_maps["0"].shape == (count, 6, 8, 8)


@pytest.mark.parametrize(("kernel", "shape"), [((3, 3), (2, 3, 8, 8)), ((3,), (2, 3, 20))])
def test_a_convolution_of_any_class_is_seen_to_convolve(kernel: tuple[int, ...], shape: tuple[int, ...]) -> None:
    layer = Own(*kernel)
    taken = look(nn.Sequential(layer), images(*shape))
    used = (layer.weight - layer.weight.mean()).detach().reshape(6, 3, *(1,) * (2 - len(kernel)), *kernel)
    np.testing.assert_array_equal(taken.filters["0"], used.numpy())
    assert taken.weights["0"].shape == (6, 3, *kernel)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2d(3, 18, 3), torchvision.ops.DeformConv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x, self.offset(x))


def test_a_deformable_convolution_is_one() -> None:
    assert select(survey(Deformed(), images(1, 3, 8, 8)), "auto", kind=Kind.FEATURE_MAPS) == ("offset", "conv")


# --- several maps an image


class Distributed(nn.Module):
    """Applies a network to each frame `[N, T, C, H, W]`, as Keras' TimeDistributed does."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.time = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.net(x.flatten(0, 1)).mean((2, 3))
        return self.time(features.unflatten(0, x.shape[:2]))[0][:, -1]


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.net(torch.cat([x, x.flip(-1)])).chunk(2)
        return first - second


class Bag(nn.Module):
    """Cuts an image into patches behind its stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.net = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.stem(x).unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3)
        return self.net(patches.flatten(0, 2)).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "shape", "layer", "maps"),
    [
        (Distributed, (2, 5, 3, 8, 8), "net.0", (10, 4, 6, 6)),
        (Siamese, (3, 3, 8, 8), "net", (6, 4, 6, 6)),
        (Bag, (2, 3, 8, 8), "net", (8, 5, 2, 2)),
    ],
)
def test_an_output_of_k_times_n_is_k_maps_an_image(
    build: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, maps: tuple[int, ...]
) -> None:
    net, probe = build(), images(*shape)
    assert layer in select(survey(net, probe), "auto", kind=Kind.FEATURE_MAPS)
    taken = look(net, probe, maps=[layer])
    assert taken.feature_maps[layer].shape == maps
    assert by_name(survey(net, probe))[layer].maps_an_image == maps[0] // shape[0]


class Proposing(nn.Module):
    """As many regions as there are bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x)
        regions = features.unfold(2, 3, 3).unfold(3, 3, 3).movedim(1, 3).flatten(0, 2)
        return self.head(regions[regions.mean((1, 2, 3)) > regions.mean()])


def test_as_many_maps_as_the_network_finds_are_not_taken() -> None:
    infos = survey(Proposing(), images(1, 3, 12, 12))
    assert select(infos, "auto", kind=Kind.FEATURE_MAPS) == ("stem",)
    assert select(infos, "auto", kind=Kind.FILTERS) == ("stem", "head")
    with pytest.raises(ValueError, match=r"'head' .* has no feature maps: how many it gives depends on what"):
        select(infos, "head", kind=Kind.FEATURE_MAPS)


# --- other inputs and values


def test_one_dimensional_networks_have_strips_and_filters_of_one_row() -> None:
    torch.manual_seed(0)
    first, last = nn.Conv1d(2, 6, 5), nn.ConvTranspose1d(6, 3, 4, 2)
    net, probe = nn.Sequential(first, nn.BatchNorm1d(6), nn.ReLU(), last).eval(), images(2, 2, 40)
    taken = look(net, probe)
    np.testing.assert_array_equal(taken.filters["0"], first.weight.detach()[:, :, None].numpy())
    np.testing.assert_array_equal(taken.filters["3"], last.weight.detach().transpose(0, 1)[:, :, None].numpy())
    np.testing.assert_array_equal(taken.feature_maps["0"], first(probe).detach()[:, :, None].numpy())
    assert taken.feature_maps["3"].shape == (2, 3, 1, 74)
    assert (taken.weights["0"].shape, taken.outputs["0"].shape[1]) == ((6, 2, 5), 6)


def test_a_gate_over_the_channels_is_not_taken_before_the_convolutions_of_images() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.conv(x.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()

    infos = survey(nn.Sequential(nn.Conv2d(3, 4, 3), Gate()), images(1, 3, 8, 8))
    assert select(infos, "auto", kind=Kind.FILTERS) == select(infos, "auto", kind=Kind.FEATURE_MAPS) == ("0",)
    assert select(infos, "1.conv", kind=Kind.FILTERS) == ("1.conv",)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.up = nn.Linear(7, 4 * 16), nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.up(self.project(z).view(-1, 4, 4, 4))


def test_a_generator_is_watched_on_latents() -> None:
    net, latents = Generator(), images(3, 7)
    np.testing.assert_array_equal(look(net, latents).feature_maps["up"], net(latents).detach().numpy())


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, dtype=torch.complex64)
        self.second = nn.Conv2d(4, 2, 3, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(torch.fft.fft2(x))).abs()


def test_complex_convolutions_are_pictured_by_magnitude_and_measured_by_both_parts() -> None:
    torch.manual_seed(0)
    net, probe = Spectral(), images(2, 1, 8, 8)
    before, maps = net.first.weight.detach().clone(), net.first(torch.fft.fft2(probe)).detach()
    taken = look(net, probe)
    np.testing.assert_allclose(taken.filters["first"], before.abs().numpy(), rtol=1e-6)
    np.testing.assert_allclose(taken.feature_maps["first"], maps.abs().numpy(), rtol=1e-5)
    np.testing.assert_array_equal(taken.weights["first"], torch.view_as_real(before).numpy())
    assert taken.outputs["first"].shape == (2 * 36, 8)
    np.testing.assert_allclose(taken.outputs["first"][0, [0, 4]], [maps[0, 0, 0, 0].real, maps[0, 0, 0, 0].imag])
    with torch.no_grad():
        net.first.weight.mul_(1j)  # turns every value, and changes no magnitude
    turned = look(net, probe)
    np.testing.assert_allclose(turned.filters["first"], taken.filters["first"], rtol=1e-6)
    assert np.abs(turned.weights["first"] - taken.weights["first"]).max() > 0.1


class Tempered(nn.Module):
    """The first parameter is none of those that the input meets."""

    def __init__(self, scale: torch.dtype, net: torch.dtype) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones((), dtype=scale))
        self.conv = nn.Conv2d(3, 4, 3, dtype=net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) / self.temperature.to(x.dtype)


def _as_it_comes(module: nn.Module, tensor: torch.Tensor) -> None:
    module(tensor)


@pytest.mark.parametrize("run", [None, _as_it_comes])
@pytest.mark.parametrize("scale", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32, torch.float16])
def test_the_probe_is_cast_to_what_the_module_takes(dtype: torch.dtype, scale: torch.dtype, run: Any) -> None:
    net, probe = Tempered(scale, dtype), images(1, 3, 8, 8)
    for _ in range(2):  # of a second survey, too
        taken = look(net, probe, run=run).feature_maps["conv"]
        np.testing.assert_array_equal(taken, net.conv(probe.to(dtype)).detach().float().numpy())


class Embedded(nn.Module):
    """Takes whole numbers, and scales them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.uint8
        return self.conv(x.float() / 255)


def test_whole_numbers_stay_whole() -> None:
    probe = (images(1, 3, 8, 8) * 255).to(torch.uint8)
    assert look(Embedded(), probe).feature_maps["conv"].shape == (1, 4, 6, 6)


# --- parts that take no hooks


class WithTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out; its models are still there
            self.teacher = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        self.unused = nn.LazyConv2d(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) - self.teacher(x)


def test_a_scripted_and_a_lazy_part_stand_beside_what_is_watched() -> None:
    net, probe = WithTeacher(), images(2, 3, 8, 8)
    state = {name: value.clone() for name, value in net.teacher.state_dict().items()}
    assert set(look(net, probe).feature_maps) == {"net"}
    assert net.teacher.training
    assert all(torch.equal(value, net.teacher.state_dict()[name]) for name, value in state.items())
    assert isinstance(net.unused.weight, nn.UninitializedParameter)
    assert {row.name for row in layer_table(net, probe).rows} >= {"net"}
    assert isinstance(net.unused.weight, nn.UninitializedParameter)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("teacher.0", "A ScriptModule cannot be watched, and layer 'teacher.0' is one"),
        ("teacher", "A ScriptModule cannot be watched, and layer 'teacher' is one"),
        ("teacher.*", "A ScriptModule cannot be watched"),
        ("unused", "Layer 'unused' (LazyConv2d) is lazy"),
    ],
)
def test_only_what_is_asked_for_inside_them_is_refused(layers: str, said: str) -> None:
    infos = survey(WithTeacher(), images(1, 3, 8, 8))
    for kind in Kind:
        with pytest.raises(ValueError, match=re.escape(said)):
            select(infos, layers, kind=kind)


# --- what is refused, and why


class OfDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, batch: Any) -> Any:
        return self.net(batch["image"])


class OfTwo(OfDict):
    def forward(self, left: Any, right: Any) -> Any:  # type: ignore[override]
        return self.net(left) + self.net(right)


class OfKeyword(OfDict):
    def forward(self, *, pixel_values: Any) -> Any:  # type: ignore[override]
        return self.net(pixel_values)


class OfSample(OfDict):
    def forward(self, sample: Any) -> Any:
        return self.net(sample.pixels)


class OfPair(OfDict):
    def forward(self, batch: Any) -> Any:
        image, _mask = batch
        return self.net(image)


@pytest.mark.parametrize("build", [OfDict, OfTwo, OfKeyword, OfSample, OfPair])
def test_where_forward_takes_no_tensor_the_refusal_names_a_part_that_does(build: Callable[[], nn.Module]) -> None:
    net, probe = build(), images(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"takes something else than one tensor.* Say through='net'") as refusal:
        survey(net, probe)
    assert "size and channels" not in str(refusal.value)
    assert by_name(survey(net, probe, through="net"))["net.0"].has_maps


def _broken_hook(key: str, module: nn.Module, args: Any, output: Any) -> None:
    raise KeyError(key)


class BrokenHook:
    def __call__(self, *_: Any) -> None:
        raise RuntimeError("size of the log does not match")


@pytest.mark.parametrize(
    ("hook", "name"),
    [(functools.partial(_broken_hook, "ema"), "_broken_hook"), (BrokenHook(), "BrokenHook")],
)
def test_a_hook_that_fails_is_reported_as_that(hook: Any, name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    net[1].register_forward_hook(hook)
    with pytest.raises(ValueError, match=rf"Your hook '{name}' on layer '1' \(ReLU\) failed") as refusal:
        survey(net, images(1, 3, 8, 8))
    assert "size and channels" not in str(refusal.value)
    assert "through=" not in str(refusal.value)


class NeedsEpoch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.schedule = nn.Conv2d(3, 4, 3), {1: 0.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.factor()

    def factor(self) -> float:
        return self.schedule[0]


def test_a_forward_that_fails_by_itself_is_reported_with_the_function() -> None:
    with pytest.raises(ValueError, match=r"KeyError: 0.*factor \(line \d+ of test_watchable.py\)") as refusal:
        survey(NeedsEpoch(), images(1, 3, 8, 8))
    assert "size and channels" not in str(refusal.value)


def test_what_fails_is_not_tried_again_in_the_type_that_it_had() -> None:
    class Calls(list[torch.dtype]):
        """A list that can be found by a weak reference alone: what a network can reach is given back."""

    calls = Calls()
    found = weakref.ref(calls)

    class Failing(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found().append(x.dtype)  # type: ignore[union-attr]
            raise RuntimeError("shape")

    for run in (None, _as_it_comes):
        with pytest.raises(ValueError, match="shape"):
            survey(Failing(3, 4, 3), images(1, 3, 8, 8), run=run)
    assert calls == [torch.float32] * 4  # once watched closely and once not


def test_a_probe_of_the_wrong_size_is_still_reported_as_that() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(10, 2))
    with pytest.raises(ValueError, match="Give a probe of the size and channels that the model is trained on"):
        survey(net, images(1, 3, 8, 8))


# --- whole networks


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.deep(skip))], 1))


def test_a_detector_is_watched_up_to_its_regions() -> None:
    torch.manual_seed(0)
    net = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    infos = survey(net, images(2, 3, 64, 64))
    assert len(select(infos, "auto", kind=Kind.FEATURE_MAPS)) > 4
    assert not by_name(infos)["roi_heads.box_roi_pool"].has_maps


@pytest.mark.parametrize(
    ("build", "shape", "auto"),
    [
        (UNet, (2, 3, 16, 16), ("down", "deep", "up", "out")),
        (Permuting, (2, 3, 8, 8), ("conv",)),
        (Distributed, (1, 5, 3, 8, 8), ("net.0",)),
        (Generator, (2, 7), ("up",)),
        (Spectral, (1, 1, 8, 8), ("first", "second")),
        (lambda: torchvision.models.swin_t(weights=None).features[:2], (1, 3, 32, 32), ("0.0",)),
        (lambda: torchvision.models.video.r3d_18(weights=None).layer1, (1, 64, 4, 8, 8), None),
    ],
)
def test_auto_takes_what_convolves_and_captures_what_was_surveyed(
    build: Callable[[], nn.Module], shape: tuple[int, ...], auto: tuple[str, ...] | None
) -> None:
    net, probe = build(), images(*shape)
    infos = by_name(survey(net, probe))
    taken = look(net, probe)
    assert auto is None or tuple(taken.feature_maps) == tuple(taken.filters) == auto
    assert {name: maps.shape for name, maps in taken.feature_maps.items()} == {
        name: infos[name].output_shape for name in taken.feature_maps
    }
