"""PEFT's adapters, parametrised and pruned weights in a training: the filters shown are those the forward pass uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from support.inertness import differences, trace
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layers import select
from cnnlog.kinds import Kind
from cnnlog.snapshot import FloatArray

IMAGE = (3, 12, 12)


def probe() -> Probe:
    return Probe.from_tensor(torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(8)))


def plain_net() -> nn.Sequential:
    net = nn.Sequential()
    net.add_module(
        "features",
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 4, 1)),
    )
    return net


def filters_of(net: nn.Module, *names: str, with_probe: bool = True) -> dict[str, FloatArray]:
    tensor = probe().tensor if with_probe else None
    seen = capture(net, tensor, filter_layers=names, map_layers=(), step=0, epoch=0, global_step=0)
    return dict(seen.filters)


def watched_run(
    build: Callable[[], nn.Module], folder: Path, *, layers: str = "auto", epochs: int = 2, **more: Any
) -> cnnlog.Run:
    """Train with and without the monitors, compare every byte, and open what was stored."""
    plain = trace(build, IMAGE, list, folder, epochs=epochs, **more)
    monitors = [FilterMonitor(layers), FeatureMapMonitor(probe(), layers)]
    assert differences(plain, trace(build, IMAGE, lambda: monitors, folder, epochs=epochs, **more)) == []
    return cnnlog.open_run(folder / "cnnlog_logs" / "version_0")


# --- PEFT


SOME = ("features.0", "features.3")
GROUPED = "features.2"


def _adapted(kind: str) -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is not installed (scripts/setup --test)")
    recent = tuple(map(int, peft.__version__.split(".")[:2])) >= (0, 21)
    if kind == "adalora" and not recent:
        pytest.skip("the AdaLoRA of this PEFT takes no convolutions")
    most = (*SOME, GROUPED) if recent else SOME  # older ones cannot run, or not merge, these methods with groups
    configs = {
        "lora": lambda: peft.LoraConfig(target_modules=SOME, r=2, lora_dropout=0.2),
        "lora with bias": lambda: peft.LoraConfig(target_modules=SOME, r=2, lora_bias=True),
        "dora": lambda: peft.LoraConfig(target_modules=SOME, r=2, use_dora=True),
        "adalora": lambda: peft.AdaLoraConfig(target_modules=SOME, init_r=2, target_r=1, total_step=9),
        "loha": lambda: peft.LoHaConfig(target_modules=most, r=2),
        "loha in two": lambda: peft.LoHaConfig(target_modules=most, r=2, use_effective_conv2d=True),
        "lokr": lambda: peft.LoKrConfig(target_modules=most, r=2),
        "ia3": lambda: peft.IA3Config(target_modules=most, feedforward_modules=[]),  # scales what comes out
        "ia3 before": lambda: peft.IA3Config(target_modules=most, feedforward_modules=most),  # and here what goes in
        "hra": lambda: peft.HRAConfig(target_modules=SOME, r=2),
        "oft": lambda: peft.OFTConfig(target_modules=SOME[1:], r=1, oft_block_size=0),  # 1 x 1: see below for others
        "oft of patches": lambda: peft.OFTConfig(target_modules=SOME[:1], r=1, oft_block_size=0),
        "whole": lambda: peft.LoraConfig(target_modules=["features.3"], modules_to_save=["features.0"], r=2),
        "grouped": lambda: peft.LoraConfig(target_modules=[GROUPED], r=2),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups > 1")
        return peft.get_peft_model(plain_net(), configs[kind]())


METHODS = ("lora", "lora with bias", "dora", "adalora", "loha", "loha in two", "lokr",
           "ia3", "ia3 before", "hra", "oft")  # fmt: skip


def layer_call(net: nn.Module, name: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A layer of the network before it was adapted, what came in there and what came out, for the probe."""
    layer = net.get_submodule(f"base_model.model.{name}")
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].clone(), output.clone()]))
    with torch.no_grad():
        net(probe().tensor)
    handle.remove()
    return layer, seen[0], seen[1]


def misfit(net: nn.Module, name: str, filters: FloatArray) -> float:
    """How far a layer's output is from a convolution with these filters and any bias; relative to the output."""
    layer, inputs, output = layer_call(net, name)
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    rest = output - F.conv2d(inputs, torch.from_numpy(filters), None, base.stride, base.padding, 1, base.groups)
    return float((rest - rest.mean((0, 2, 3), keepdim=True)).abs().max() / output.abs().max())


def _moved(net: Any) -> Any:
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)), alpha=0.1)
    return net


@pytest.mark.parametrize("kind", METHODS)
def test_adapted_layers_convolve_with_the_filters_that_are_shown(kind: str) -> None:
    net = _moved(_adapted(kind)).eval()
    for name in _targets(net):
        (shown,) = filters_of(net, name).values()
        base = net.get_submodule(f"base_model.model.{name}.base_layer").weight.detach().numpy()
        assert misfit(net, name, shown) < 1e-5
        assert misfit(net, name, base) > 1e-3


def test_adapted_oft_patches_are_shown_as_peft_would_merge_them() -> None:
    """Its forward pass turns every patch of the image and adds up where they overlap: no filters of that size do so."""
    net = _moved(_adapted("oft of patches")).eval()
    (shown,) = filters_of(net, "features.0").values()
    assert misfit(net, "features.0", shown) > 1e-2
    np.testing.assert_array_equal(shown, net.merge_and_unload().features[0].weight.detach().numpy())


@pytest.mark.filterwarnings("ignore:cnnlog. no feature map of net.features.2.lora_B")  # it begins with zeros
def test_an_adapter_that_cannot_be_merged_is_shown_in_its_parts(tmp_path: Path) -> None:
    """LoRA mixes all channels of a grouped convolution, and no filters of the layer's own shape do so."""
    parts = tuple(f"features.2.{part}" for part in ("base_layer", "lora_A.default", "lora_B.default"))
    infos = survey(_adapted("grouped"), probe())
    assert select(infos, "auto", kind=Kind.FILTERS) == ("features.0", *parts, "features.3")
    assert select(infos, "features.2", kind=Kind.FEATURE_MAPS) == ("features.2",)
    with pytest.raises(
        ValueError, match=r"'features.2' .* has none of its own; layers with filters: 'features.2.base_"
    ):
        select(infos, "features.2", kind=Kind.FILTERS)
    run = watched_run(lambda: _adapted("grouped"), tmp_path)
    change = [np.abs(run.filters(f"net.{part}", step=2) - run.filters(f"net.{part}", step=0)).max() for part in parts]
    assert [bool(most > 0) for most in change] == [False, True, True]


def _targets(net: nn.Module) -> list[str]:
    return [name for name in ("features.0", "features.2", "features.3")
            if hasattr(net.get_submodule(f"base_model.model.{name}"), "base_layer")]  # fmt: skip


@pytest.mark.parametrize("kind", [*METHODS, "whole"])
def test_adapted_filters_are_those_that_peft_would_merge(kind: str) -> None:
    net = _moved(_adapted(kind))
    names = ("features.0", "features.2", "features.3")
    assert select(survey(net, probe()), "auto", kind=Kind.FILTERS) == names
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with_probe, without = filters_of(net, *names), filters_of(net, *names, with_probe=False)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    base = net.get_submodule("base_model.model.features.3.base_layer").weight.detach().numpy()
    assert np.abs(with_probe["features.3"] - base).max() > 0.001
    merged = net.merge_and_unload().state_dict()
    for name in names:
        np.testing.assert_array_equal(with_probe[name], merged[f"{name}.weight"].numpy())
        np.testing.assert_array_equal(without[name], with_probe[name])


@pytest.mark.parametrize("kind", [*METHODS, "oft of patches"])
def test_adapters_train_as_if_unwatched_and_their_filters_move_while_the_base_stays(kind: str, tmp_path: Path) -> None:
    run = watched_run(lambda: _adapted(kind), tmp_path)
    names = ("net.features.0", "net.features.2", "net.features.3")  # as before PEFT wrapped the network
    assert run.layers == names
    moved = [f"net.{name}" for name in _targets(_adapted(kind))]
    for name in names:
        difference = np.abs(run.filters(name, step=2) - run.filters(name, step=0)).max()
        assert (difference > 0, run.numbers("weight_change", name, step=2).max() > 0) == (name in moved, name in moved)


def test_adapters_that_are_switched_off_or_merged_show_what_forward_uses() -> None:
    net = _moved(_adapted("lora"))
    layer = net.base_model.model.features[0]
    base = layer.base_layer.weight.detach().clone().numpy()
    active = filters_of(net, "features.0")["features.0"]
    with net.disable_adapter():
        np.testing.assert_array_equal(filters_of(net, "features.0")["features.0"], base)
    net.merge_adapter()
    np.testing.assert_array_equal(filters_of(net, "features.0")["features.0"], active)
    before = layer.base_layer.weight.detach().clone()
    with net.disable_adapter():  # its forward takes the merged adapter out of the base weight; a look puts it back
        for with_probe in (True, False):
            shown = filters_of(net, "features.0", with_probe=with_probe)["features.0"]
            np.testing.assert_allclose(shown, base, atol=1e-6)
            assert torch.equal(layer.base_layer.weight, before)
            assert layer.merged


def test_adapted_layers_are_named_as_they_were_and_a_glob_or_type_takes_each_once() -> None:
    net = _adapted("lora")
    infos = survey(net, probe())
    whole = ("features.0", "features.2", "features.3")
    for wanted in ("features.*", "base_model.model.features.*", [nn.Conv2d], "*"):
        assert select(infos, wanted, kind=Kind.FILTERS) == whole
    assert select(infos, "base_model.model.features.0", kind=Kind.FEATURE_MAPS) == ("features.0",)
    assert select(infos, "*.base_layer", kind=Kind.FILTERS) == ("features.0.base_layer", "features.3.base_layer")
    assert select(infos, ["features.0.lora_A.default"], kind=Kind.FILTERS) == ("features.0.lora_A.default",)
    assert "features.1" in select(infos, "*", kind=Kind.FEATURE_MAPS)


# --- weights that are computed


class Centred(nn.Module):
    """A parametrisation of somebody's own: every filter has mean 0."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


class Standardised(nn.Conv2d):
    """Computes its weight in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class StandardisedUp(nn.ConvTranspose2d):
    """The same, and gives the weight by name."""

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        return F.conv_transpose2d(x, weight=self.weight / self.weight.norm(), bias=self.bias, groups=self.groups)


class Mixed(nn.Conv2d):
    """Convolves with a weight that is made for each image: another shape than its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean((1, 2, 3)).view(-1, 1, 1, 1, 1)
        weight = (scale * self.weight).flatten(0, 1)
        return F.conv2d(x.flatten(0, 1)[None], weight, groups=len(x)).unflatten(1, (len(x), -1))[0]


class Wrapper(nn.Module):
    """Scales the weight of the convolution in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.conv.weight * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * 2


class Retries(nn.Conv2d):
    """Has a part that fails in forward, and convolves all the same."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3, bias=False)
        self.part = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            self.part(x)
        except RuntimeError:
            return F.conv2d(x, self.weight * 3)
        raise AssertionError("the part did not fail")


def test_weights_that_forward_computes_are_seen_as_it_computes_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Standardised(3, 4, 3), StandardisedUp(4, 4, 3, groups=2))
    seen = filters_of(net, "0", "1")
    np.testing.assert_allclose(seen["0"].mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(seen["0"].std((1, 2, 3), ddof=1), 1, atol=1e-5)
    assert seen["1"].shape == (4, 2, 3, 3)
    assert np.linalg.norm(seen["1"]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(
        filters_of(net, "0", with_probe=False)["0"], net.get_parameter("0.weight").detach().numpy()
    )


def test_what_is_not_the_layers_own_filters_is_not_taken_for_them() -> None:
    torch.manual_seed(0)
    mixed = nn.Sequential(Mixed(3, 4, 3, bias=False))
    np.testing.assert_array_equal(filters_of(mixed, "0")["0"], mixed.get_parameter("0.weight").detach().numpy())
    wrapper = Wrapper()
    wrapped = nn.Sequential(wrapper)
    np.testing.assert_array_equal(filters_of(wrapped, "0")["0"], wrapper.weight.detach().numpy())
    assert np.abs(filters_of(wrapped, "0", "0.conv")["0.conv"] * 2 - filters_of(wrapped, "0")["0"]).max() == 0


def test_a_forward_that_catches_an_error_is_followed() -> None:
    net = nn.Sequential(Retries(), nn.Conv2d(4, 4, 1))
    seen = filters_of(net, "0", "1")
    np.testing.assert_array_equal(seen["1"], net.get_parameter("1.weight").detach().numpy())
    np.testing.assert_array_equal(seen["0"], (net.get_parameter("0.weight") * 3).detach().numpy())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.orthogonal, lambda conv: parametrize.register_parametrization(conv, "weight", Centred())],
    ids=["orthogonal", "own"],
)
def test_parametrised_filters_are_the_computed_ones(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    def build() -> nn.Module:
        net = plain_net()
        wrap(net.get_submodule("features.0"))
        return net

    run = watched_run(build, tmp_path)
    shown = run.filters("net.features.0", step=2)
    if wrap is parametrizations.orthogonal:
        np.testing.assert_allclose(shown @ shown.swapaxes(2, 3), np.broadcast_to(np.eye(3), shown.shape), atol=1e-5)
    else:
        np.testing.assert_allclose(shown.mean((1, 2, 3)), 0, atol=1e-6)
    assert np.abs(shown - run.filters("net.features.0", step=0)).max() > 0


class PrunesAfter(ModelPruning):
    """Prunes once, when the first epoch is over: `weight` becomes `weight_orig` and a mask."""

    def __init__(self) -> None:
        super().__init__(
            "l1_unstructured", parameter_names=["weight"], amount=0.5, apply_pruning=lambda epoch: epoch == 0
        )


def test_pruning_that_begins_in_the_training_is_seen(tmp_path: Path) -> None:
    plain = trace(plain_net, IMAGE, lambda: [PrunesAfter()], tmp_path, epochs=3)
    both = lambda: [FilterMonitor(), PrunesAfter(), FeatureMapMonitor(probe())]  # noqa: E731
    assert differences(plain, trace(plain_net, IMAGE, both, tmp_path, epochs=3)) == []
    run = cnnlog.open_run(tmp_path / "cnnlog_logs" / "version_0")
    zeros = [float((run.filters("net.features.0", step=step) == 0).mean()) for step in run.steps]
    assert zeros[0] == 0
    assert zeros[-1] == pytest.approx(0.5, abs=0.2)
    np.testing.assert_array_equal(
        run.filters("net.features.0", step=2) == 0, run.filters("net.features.0", step=3) == 0
    )


@pytest.mark.parametrize("structured", [False, True])
def test_pruned_filters_are_masked_also_after_an_optimiser_step(structured: bool) -> None:
    net = plain_net()
    first: Any = net.get_submodule("features.0")
    if structured:
        prune.ln_structured(first, "weight", 0.5, n=2, dim=0)
    else:
        both = [(first, "weight"), (net.get_submodule("features.3"), "weight")]
        prune.global_unstructured(both, prune.L1Unstructured, amount=0.5)
    with torch.no_grad():
        first.weight_orig += 1  # what the module holds as its weight is stale now
    expected = (first.weight_orig * first.weight_mask).detach().numpy()
    for with_probe in (True, False):
        np.testing.assert_array_equal(filters_of(net, "features.0", with_probe=with_probe)["features.0"], expected)
    assert not np.array_equal(first.weight.detach().numpy(), expected)  # and it is left stale
