"""Looking at a model: what is seen is right, and everything that was touched is given back."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import pytest
import torch
from support import zoo
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layers import LayerInfo
from cnnlog.capture.loan import borrow, has_run
from cnnlog.capture.probe import Probe
from cnnlog.snapshot import Snapshot


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


def images(n: int = 2, channels: int = 3, size: int = 12) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def look(model: nn.Module, *, filters: Sequence[str] = (), maps: Sequence[str] = (), **options: Any) -> Snapshot:
    probe = options.pop("probe", images())
    return capture(model, probe, filter_layers=filters, map_layers=maps, step=3, epoch=2, global_step=9, **options)


def by_name(infos: Sequence[LayerInfo]) -> dict[str, LayerInfo]:
    return {info.name: info for info in infos}


# --- what is seen


def test_maps_are_the_layers_own_output_before_activations_rewrite_it() -> None:
    net = zoo.InPlace()
    seen = look(net, maps=["0", "2"], filters=["0"])
    weights = dict(net.named_parameters())
    first = F.conv2d(images(), weights["0.weight"], weights["0.bias"])
    second = F.conv2d(first.relu(), weights["2.weight"], weights["2.bias"])
    torch.testing.assert_close(torch.from_numpy(seen.feature_maps["0"]), first.detach())
    torch.testing.assert_close(torch.from_numpy(seen.feature_maps["2"]), second.detach())
    assert (seen.feature_maps["0"] < 0).any()
    assert (seen.step, seen.epoch, seen.global_step) == (3, 2, 9)


def test_arrays_are_owned_contiguous_and_float32_whatever_the_model_is() -> None:
    conv = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(conv).to(torch.bfloat16).to(memory_format=torch.channels_last)
    seen = look(net, filters=["0"], maps=["0"], probe=Probe.from_tensor(images()))
    for array in (seen.filters["0"], seen.feature_maps["0"]):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    np.testing.assert_array_equal(seen.filters["0"], conv.weight.detach().float().numpy())
    seen.filters["0"].fill(7)
    assert not torch.any(conv.weight == 7)


def test_filters_alone_need_no_probe_and_run_nothing() -> None:
    net = zoo.FailsMidway()
    net.trained = 1
    seen = look(net, filters=["head"], probe=None)
    np.testing.assert_array_equal(seen.filters["head"], net.head.weight.detach().numpy())
    with pytest.raises(ValueError, match="head were asked for without a probe"):
        look(net, maps=["head"], probe=None)


def test_not_finite_values_are_captured_as_they_are() -> None:
    conv = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = torch.nan
        conv.weight[1, 0, 0, 0] = torch.inf
    seen = look(nn.Sequential(conv), filters=["0"], maps=["0"])
    assert np.isnan(seen.filters["0"][0, 0, 0, 0])
    assert not np.isfinite(seen.feature_maps["0"]).any()


def test_the_first_call_of_a_module_counts() -> None:
    net = zoo.Shared()
    seen = look(net, maps=["first"])
    with torch.no_grad():
        expected = net.first(net.stem(images()))
    np.testing.assert_array_equal(seen.feature_maps["first"], expected.numpy())
    assert "second" not in by_name(survey(net, images()))  # one module, one name


def test_tuples_and_dicts_give_their_first_tensor() -> None:
    net = zoo.Packed()
    seen = look(net, maps=["pair", "dictionary"])
    assert seen.feature_maps["pair"].shape == (2, 4, 10, 10)
    assert seen.feature_maps["dictionary"].shape == (2, 4, 8, 8)


def test_a_survey_tells_what_ran_in_which_order_with_which_shapes() -> None:
    infos = survey(zoo.Auxiliary(), images())
    assert [info.name for info in infos] == ["body", "head", "", "aux"]
    found = by_name(infos)
    assert found["head"].output_shape == (2, 4, 8, 8)
    assert found["head"].weight_shape == (4, 4, 3, 3)
    assert found["head"].has_filters
    assert found["head"].has_maps
    assert found["aux"].output_shape is None
    assert found["aux"].has_filters
    assert not found["aux"].has_maps
    assert [info.output_shape for info in survey(zoo.Auxiliary(), None)] == [None] * 4


def test_of_another_number_of_images_there_are_several_maps_an_image() -> None:
    regions = by_name(survey(zoo.OtherBatch(), images()))["head"]
    assert (regions.output_shape, regions.has_maps, regions.has_filters) == ((8, 4, 4, 4), True, True)


def test_of_video_the_kernels_frames_stand_side_by_side_and_the_middle_frame_is_seen() -> None:
    net = zoo.Video()
    deep = by_name(survey(net, images()))["deep"]
    assert (deep.weight_shape, deep.output_shape, deep.has_maps, deep.has_filters) == (
        (2, 1, 3, 9),
        (2, 2, 8, 8),
        True,
        True,
    )
    seen = look(net, filters=["deep"], maps=["deep"])
    whole = net(images()).detach()  # [2, 2, 2, 8, 8]: of two frames, the second
    np.testing.assert_array_equal(seen.feature_maps["deep"], whole[:, :, 1].numpy())
    weight = net.deep.weight.detach().numpy()
    for frame in range(3):
        np.testing.assert_array_equal(seen.filters["deep"][..., 3 * frame : 3 * frame + 3], weight[:, :, frame])


@pytest.mark.parametrize("layer", ["flatten", "missing"])
def test_a_layer_that_has_no_maps_any_more_is_refused(layer: str) -> None:
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    with pytest.raises(ValueError, match=r"'flatten' has no feature maps.*\[2, 432\]|has no layer 'missing'"):
        look(net, maps=[layer])


def test_filters_of_a_layer_that_does_not_run_are_read_all_the_same() -> None:
    net = zoo.Auxiliary()
    np.testing.assert_array_equal(look(net, filters=["aux"]).filters["aux"], net.aux.weight.detach().numpy())
    with pytest.raises(ValueError, match="'aux' did not run"):
        look(net, maps=["aux"])


# --- effective weights


def _step(net: nn.Module) -> None:
    """One optimiser step, after which weights kept from the last forward are stale."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    out = net(images())
    (out - torch.rand_like(out)).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize(
    "name",
    ["spectral_norm_old", "spectral_norm_new", "weight_norm_old", "weight_norm_new", "pruned"],
)
@pytest.mark.parametrize("with_probe", [True, False])
def test_weights_are_those_the_forward_pass_uses(name: str, with_probe: bool) -> None:
    net = zoo.ZOO[name].build()
    _step(net)
    seen = look(net, filters=["0", "2"], maps=["0", "2"]) if with_probe else look(net, filters=["0", "2"], probe=None)
    maps = look(net, maps=["0"]).feature_maps["0"]
    made = F.conv2d(images(), torch.from_numpy(seen.filters["0"]), net.get_parameter("0.bias"))
    torch.testing.assert_close(made.detach(), torch.from_numpy(maps))


def test_looking_does_not_advance_spectral_norm() -> None:
    net = zoo.ZOO["spectral_norm_old"].build()
    before = net.get_buffer("0.weight_u").clone()
    look(net, filters=["0"], maps=["0"])
    assert torch.equal(net.get_buffer("0.weight_u"), before)
    net(images())
    assert not torch.equal(net.get_buffer("0.weight_u"), before)  # training does


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_give_one_filter_for_each_output_channel(groups: int) -> None:
    net = nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=groups, bias=False))
    filters = look(net, filters=["0"], probe=images(channels=6)).filters["0"]
    assert filters.shape == (4, 6 // groups, 3, 3)
    for channel in range(4):  # an output channel depends on its own filter only
        changed = nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=groups, bias=False))
        changed.load_state_dict(net.state_dict())
        with torch.no_grad():
            weight = changed.get_parameter("0.weight").view(groups, 6 // groups, 4 // groups, 3, 3)
            weight[channel // (4 // groups), :, channel % (4 // groups)] = 0
            moved = (changed(images(channels=6)) != net(images(channels=6))).flatten(2).any(2).any(0)
        assert moved.tolist() == [i == channel for i in range(4)]
        other = look(changed, filters=["0"], probe=None).filters["0"]
        assert [bool((other[i] != filters[i]).any()) for i in range(4)] == moved.tolist()


class LoraConv(nn.Module):
    """As PEFT's: not a Conv2d, and the base weight never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Conv2d(3, 4, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Conv2d(3, 2, 3, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Conv2d(2, 4, 1, bias=False)})
        self.active_adapters = ["default"]
        self.merged = self.disable_adapters = False

    def get_base_layer(self) -> nn.Conv2d:
        return self.base_layer

    def merge(self) -> None:
        up, down = self.get_parameter("lora_B.default.weight"), self.get_parameter("lora_A.default.weight")
        self.base_layer.weight.data += torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_lora_layers_show_base_and_adapter_together() -> None:
    layer = LoraConv()
    net = nn.Sequential(layer)
    seen = look(net, filters=["0"], maps=["0"])
    made = F.conv2d(images(), torch.from_numpy(seen.filters["0"]), layer.base_layer.bias)
    torch.testing.assert_close(made.detach(), torch.from_numpy(seen.feature_maps["0"]))
    layer.merged = True
    merged = look(net, filters=["0"]).filters["0"]
    np.testing.assert_array_equal(merged, layer.base_layer.weight.detach().numpy())


def test_converted_quantised_convolutions_are_dequantised() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no quantised kernels for this processor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way out; models converted with it are still there
        quantised = torch.ao.nn.quantized.Conv2d(3, 4, 3)
        weight = torch.quantize_per_tensor(torch.randn(4, 3, 3, 3), 0.02, 0, torch.qint8)
        quantised.set_weight_bias(weight, torch.zeros(4))
        quantised.scale, quantised.zero_point = 0.05, 64
        net = nn.Sequential(torch.ao.nn.quantized.Quantize(0.01, 0, torch.quint8), quantised)
        seen = look(net, filters=["1"], maps=["1"])
    np.testing.assert_allclose(seen.filters["1"], weight.dequantize().numpy())
    made = F.conv2d(images(), weight.dequantize())
    assert np.abs(seen.feature_maps["1"] - made.numpy().clip(-3.2, 9.55)).max() < 0.25


class Stream:
    """Stands in for a CUDA stream, and for the event recorded on it: says what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def record_event(self) -> Stream:
        self.asked.append("record")
        return self

    def synchronize(self) -> None:
        self.asked.append("wait")


@pytest.mark.parametrize("wait", [False, True])
def test_copies_from_cuda_are_waited_for_once_and_by_whom_it_is_asked(
    wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    layers = ["0", "2"]
    plain = look(net, filters=layers, maps=layers)
    assert plain.ready is None
    stream, empty, pinned = Stream(), torch.empty, []

    def allocate(*args: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **options)

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch, "empty", allocate)
    seen = look(net, filters=layers, maps=layers, wait=wait)
    assert pinned == [True] * 4
    if not wait:
        assert stream.asked == ["record"]  # after all copies were sent for, and not waited for here
        assert seen.ready is not None
        seen.ready()
    assert seen.ready is None or not wait
    assert stream.asked == ["record", "wait"]
    for name in layers:
        np.testing.assert_array_equal(seen.filters[name], plain.filters[name])
        np.testing.assert_array_equal(seen.feature_maps[name], plain.feature_maps[name])
        assert seen.feature_maps[name].flags.c_contiguous


# --- what is given back


def _everything(net: nn.Module) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, module in net.named_modules():
        kept[f"{name} flag"] = module.training
        kept[f"{name} parameters"] = [(k, id(p), p.data_ptr(), p.tolist()) for k, p in module._parameters.items()]
        kept[f"{name} parameters dict"] = id(module._parameters)
        for key, value in module.__dict__.items():
            if isinstance(value, (list, dict, set)):
                kept[f"{name}.{key}"] = (id(value), [*map(id, value.values() if isinstance(value, dict) else value)])
            elif isinstance(value, (torch.Tensor, np.ndarray)):
                kept[f"{name}.{key}"] = (id(value), value.tolist())
            elif key != "training":
                kept[f"{name}.{key}"] = (id(value), repr(value))
        kept[f"{name} buffers"] = {k: (id(b), b.tolist()) for k, b in module._buffers.items() if b is not None}
    return kept


def _use_and_interrupt(net: nn.Module, before: dict[str, Any]) -> None:
    with borrow(net):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
        net(images())
        assert _everything(net) != before
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["mutates", "late", "momentum", "momentum_in_place", "frozen_norm", "keeps_hooks"])
def test_everything_is_given_back_also_after_an_exception(name: str) -> None:
    net = zoo.ZOO[name].build()
    before = _everything(net)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _use_and_interrupt(net, before)
        assert _everything(net) == before
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["mutates", "momentum", "momentum_in_place", "frozen_norm"])
def test_everything_is_given_back_also_without_comparing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = zoo.ZOO[name].build()
    before = _everything(net)
    survey(net, images())  # finds out whether forward writes parameters
    monkeypatch.setattr("cnnlog.capture.kept._comparing_waits", lambda tensor: True)  # as on CUDA
    monkeypatch.setattr("cnnlog.capture.kept._same_bytes", lambda a, b: pytest.fail("compared"))
    for _ in range(2):
        survey(net, images())
        assert _everything(net) == before


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.cat.default, torch.ops.aten._foreach_copy_.default)
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


def test_small_tensors_are_copied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device each call costs more than what it copies; a deep network has hundreds of buffers."""
    net = nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(50)))
    has_run(net)
    monkeypatch.setattr("cnnlog.capture.kept._comparing_waits", lambda tensor: True)  # as on CUDA
    with Calls() as calls, borrow(net):
        pass
    assert 0 < calls.count <= 6  # each type at once, there and back: buffers of float32 and int64, parameters


@pytest.mark.parametrize("blind", [False, True])
def test_a_buffer_whose_elements_share_memory_is_lent(blind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.register_buffer("scale", torch.full((1, 4), 2.0).expand(5, 4))
    monkeypatch.setattr("cnnlog.capture.kept._comparing_waits", lambda tensor: blind)  # as on CUDA
    with borrow(net):
        pass
    scale = net.get_buffer("scale")
    assert scale.stride() == (0, 1)
    assert torch.equal(scale, torch.full((5, 4), 2.0))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15),
    reason="older versions of torch ask CUDA's driver even for tensors without values; 2.6 aborts",
)
@pytest.mark.parametrize("careful", [True, False])
def test_a_capture_reads_no_value_from_a_device(careful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on CUDA and hold no values, so that what waits for one raises on any machine."""
    seen = []
    plain = (torch.Tensor, nn.Parameter, FakeTensor)

    def noted(tensor: torch.Tensor, **_: Any) -> npt.NDArray[np.float64]:
        seen.append(tensor)
        return np.zeros(tensor.shape)

    for module in ("capture", "measuring", "used_weights"):
        monkeypatch.setattr(f"cnnlog.capture.{module}.to_host", noted)
    monkeypatch.setattr("cnnlog.capture.kept.is_wrapper", lambda tensor: type(tensor) not in plain)
    monkeypatch.setattr("cnnlog.capture.kept._pointer", id)
    if not careful:
        monkeypatch.setattr("cnnlog.capture.kept._comparing_waits", lambda tensor: False)
    with FakeTensorMode(), torch.device("cuda"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 8, 3))
        has_run(net)  # the first loan is at the start, and may wait
        with nullcontext() if careful else pytest.raises(DataDependentOutputException):
            look(net, filters=["0", "4"], maps=["0", "4"], probe=torch.rand(2, 3, 9, 9))
    assert {tensor.device.type for tensor in seen} == {"cuda"}


def test_nothing_watches_torch_after_an_interrupt() -> None:
    class Interrupted(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(nn.Sequential(Interrupted(3, 4, 3)), filters=["0"], maps=["0"])
    assert torch.overrides._get_current_function_mode_stack() == []


def test_zero_3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(conv)
    vars(conv.weight)["ds_tensor"] = torch.zeros(3)  # where DeepSpeed keeps a process's part
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    with pytest.raises(ValueError, match="DeepSpeed ZeRO stage 3 has flattened those of '0'"):
        survey(net, images())


def test_gradients_are_left_alone() -> None:
    net = zoo.InPlace()
    net(images()).sum().backward()
    gradients = {name: (id(p.grad), p.grad.clone()) for name, p in net.named_parameters() if p.grad is not None}
    look(net, filters=["0"], maps=["2"])
    for name, parameter in net.named_parameters():
        assert id(parameter.grad) == gradients[name][0]
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name][1])


def test_a_pending_backward_still_works() -> None:
    net = zoo.Mutates()
    loss = net(images()).sum()
    look(net, maps=["spare"])  # its forward swaps the two
    loss.backward()


def test_a_capture_inside_autocast_does_not_cut_the_gradient() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        look(net, maps=["0"])
        net(images()).sum().backward()
    assert net[0].weight.grad is not None


def test_what_forward_caches_is_no_inference_tensor() -> None:
    net = zoo.Caches()
    with torch.inference_mode():
        kept: list[bool] = []
        look(net, maps=["conv"], run=lambda module, x: kept.append(module(x).is_inference()))
    assert kept == [False]


class CopiedBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.cat.default):
            self.bytes += result.nbytes
        return result


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of these tests are taken for large."""
    monkeypatch.setattr("cnnlog.capture.lent_tensors.COPIED_WHOLE", 0)


def test_parameters_are_copied_at_the_first_loan_only(large: None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(500, 500))
    copied = []
    for _ in range(3):
        with CopiedBytes() as count, borrow(net):
            has_run(net)
            copied.append(count.bytes)  # what is brought together to be compared afterwards is no copy
    assert copied == [sum(p.nbytes for p in net.parameters()), 0, 0]


class LateWriter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.writes = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            self.conv.weight.mul_(2)
        return self.conv(x)


def test_a_model_that_begins_to_write_its_parameters_gets_them_back() -> None:
    net = LateWriter()
    look(net, maps=["conv"])
    net.writes = True
    before = net.conv.weight.clone()
    for _ in range(2):
        look(net, maps=["conv"])
        assert torch.equal(net.conv.weight, before)


class LateUnseen(LateWriter):
    """Begins to write into a parameter where Python is not asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            with torch._C.DisableTorchFunction():  # as in compiled code
                self.conv.weight.mul_(2)
        return self.conv(x)


def test_a_model_that_begins_to_write_where_nobody_sees_it_is_reported_once_and_then_copied(large: None) -> None:
    net = LateUnseen()
    look(net, maps=["conv"])
    net.writes = True
    with pytest.raises(RuntimeError, match=r"LateUnseen.forward in eval mode wrote into parameters \[4, 3, 3, 3\]"):
        look(net, maps=["conv"])
    before = net.conv.weight.clone()
    look(net, maps=["conv"])
    assert torch.equal(net.conv.weight, before)


def test_a_large_attribute_is_copied_only_while_it_may_be_written(large: None) -> None:
    net = LateWriter()
    net.table = torch.zeros(300_000)
    copied = []
    for _ in range(2):
        with CopiedBytes() as count, borrow(net):
            has_run(net)
        copied.append(count.bytes)
    assert copied[0] > 1_200_000
    assert copied[1] == 0


# --- compiled models


def _whole(net: nn.Module) -> Any:
    return torch.compile(net, backend=_counted)


def _in_place(net: nn.Module) -> nn.Module:
    net.compile(backend=_counted)
    return net


def _part(net: nn.Module) -> nn.Module:
    stem: Any = net.get_submodule("stem")
    compiled: Any = torch.compile(stem, backend=_counted)
    net.add_module("stem", compiled)
    return net


compilations: list[int] = []


def _counted(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
    compilations.append(1)
    return graph.forward


@pytest.mark.parametrize("compile_", [_whole, _in_place, _part])
def test_compiled_models_are_watched_under_their_plain_names_without_recompiling(
    compile_: Callable[[nn.Module], nn.Module],
) -> None:
    torch._dynamo.reset()
    net = compile_(zoo.FrozenNorm())
    flags = [module.training for module in net.modules()]
    net(images())
    compilations.clear()
    infos = survey(net, images())
    seen = look(net, filters=["stem"], maps=["stem", "head"])
    assert [info.name for info in infos] == ["stem", "norm", "head", "drop", ""]
    assert seen.feature_maps["head"].shape == (2, 4, 8, 8)
    assert [module.training for module in net.modules()] == flags
    net(images())
    assert compilations == []
    net(images(size=14))
    assert compilations  # a new shape does compile: the count works
    torch._dynamo.reset()


# --- refusals


def test_lazy_and_scripted_models_are_refused_before_anything_runs() -> None:
    lazy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match=r"Layer '1' \(LazyConv2d\) is lazy .* run the model once"):
        survey(lazy, images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out; its models are still there
        scripted = torch.jit.trace(nn.Conv2d(3, 4, 3), images())
    with pytest.raises(ValueError, match=r"ScriptModule cannot be watched, and layer '0' is one"):
        survey(nn.Sequential(scripted), images())
    with pytest.raises(ValueError, match="and the model is one"):
        survey(scripted, images())


def test_a_probe_that_the_model_refuses_is_reported_with_the_layers_that_ran() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10, 2))
    with pytest.raises(ValueError, match=r"The probe \[2, 3, 12, 12\] cannot go through Sequential") as refusal:
        survey(net, images())
    assert "what ran: 0 [2, 4, 10, 10], 1 [2, 4, 10, 10], 2 [2, 400]." in str(refusal.value)
    assert isinstance(refusal.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match=r"expected input.* to have 3 channels.*what ran: nothing"):
        survey(net, images(channels=1))
    assert all(not module._forward_hooks and module.training for module in net.modules())


class Headless(L.LightningModule):
    """Has no forward of its own."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3)))
        self.loss = nn.CrossEntropyLoss()


def test_without_a_forward_the_probe_runs_through_the_only_child_or_the_one_named() -> None:
    assert look(Headless("net"), maps=["net.0"]).feature_maps["net.0"].shape == (2, 4, 10, 10)
    two = Headless("student", "teacher")
    with pytest.raises(ValueError, match=r"Headless has no forward of its own, and 2 children .*'student', 'teacher'"):
        survey(two, images())
    found = by_name(survey(two, images(), through="teacher"))
    assert found["teacher.0"].output_shape is not None
    assert found["student.0"].output_shape is None
    with pytest.raises(ValueError, match=r"through='teachr' names no sub-module of Headless; there is \['teacher'"):
        survey(two, images(), through="teachr")


def test_the_caller_may_run_the_forward() -> None:
    def in_bfloat16(module: nn.Module, x: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            module(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    rounded = look(net, maps=["0"], run=in_bfloat16).feature_maps["0"]
    exact = look(net, maps=["0"]).feature_maps["0"]
    assert 0 < np.abs(rounded - exact).max() < 0.05
    assert math.isfinite(rounded.sum())
