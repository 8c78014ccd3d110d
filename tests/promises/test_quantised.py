"""Quantisation: filters are those that a (fake-)quantising convolution computes with; observers stay as they were."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.inertness import differences, trace
from torch import nn

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.capture.capture import capture, survey
from cnnlog.capture.layers import select
from cnnlog.kinds import Kind

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

# torch.ao is on its way out; models made with it are still there
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*quant_max.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*reduce_range will be deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*torch.quantize_per.*"),
]

IMAGE = (3, 12, 12)


def images(seed: int = 8, count: int = 2) -> torch.Tensor:
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.last = nn.Conv2d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.last(self.relu(self.bn(self.conv(self.quant(x))))))


def qat_net() -> Net:
    """A net in quantisation-aware training: `conv` has its batch norm and ReLU folded in."""
    net = Net().train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.fuse_modules_qat(net, [["conv", "bn", "relu"]], inplace=True)
    return quantization.prepare_qat(net, inplace=True)


def trained_qat_net() -> Any:
    torch.manual_seed(0)
    net = qat_net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for seed in range(3):
        net(images(seed, 8)).square().mean().backward()
        optimiser.step()
    return net


def converted_net() -> Any:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no quantised kernels for this processor")
    return quantization.convert(trained_qat_net().eval())


def test_qat_trains_as_if_unwatched(tmp_path: Path) -> None:
    probe = Probe.from_tensor(images())
    plain = trace(qat_net, IMAGE, list, tmp_path)
    watched = trace(qat_net, IMAGE, lambda: [FilterMonitor(), FeatureMapMonitor(probe)], tmp_path)
    assert differences(plain, watched) == []
    run = cnnlog.open_run(tmp_path / "cnnlog_logs" / "version_0")
    assert run.layers == ("net.conv", "net.last")
    assert np.abs(run.filters("net.conv", step=2) - run.filters("net.conv", step=0)).max() > 0


def test_qat_filters_are_fake_quantised_with_the_batch_norm_folded_in() -> None:
    net = trained_qat_net()
    seen = capture(net, images(), filter_layers=("conv", "last"), map_layers=(), step=0, epoch=0, global_step=0).filters
    with torch.no_grad():
        gain = net.conv.bn.weight / (net.conv.bn.running_var + net.conv.bn.eps).sqrt()
        folded = copy.deepcopy(net.conv.weight_fake_quant)(net.conv.weight * gain[:, None, None, None])
        plain = copy.deepcopy(net.last.weight_fake_quant)(net.last.weight)
    np.testing.assert_array_equal(seen["conv"], folded.numpy())
    np.testing.assert_array_equal(seen["last"], plain.numpy())
    assert np.abs(seen["conv"] - net.conv.weight.detach().numpy()).max() > 0.01


def test_observers_are_given_back_byte_for_byte() -> None:
    net = trained_qat_net()
    before = copy.deepcopy(net.state_dict())
    seen = capture(net, images() * 9, filter_layers=(), map_layers=("conv",), step=0, epoch=0, global_step=0)
    assert seen.feature_maps["conv"].shape == (2, 6, 10, 10)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        net.eval()(images() * 9)
    changed = [key for key, value in net.state_dict().items() if not torch.equal(value, before[key])]
    assert any("activation_post_process" in key for key in changed)  # a forward in eval mode does write them


def test_converted_models_are_watched_dequantised(tmp_path: Path) -> None:
    net = converted_net()
    before = net(images())
    with cnnlog.watch(net, Probe.from_tensor(images()), tmp_path) as watcher:
        watcher.snapshot(0)
        watcher.snapshot(1)
    assert watcher.layers == ("conv", "last")
    assert torch.equal(net(images()), before)
    run = cnnlog.open_run(tmp_path)
    np.testing.assert_array_equal(run.filters("conv", step=1), net.conv.weight().dequantize().numpy())
    maps = capture(net, images(), filter_layers=(), map_layers=("conv",), step=0, epoch=0, global_step=0)
    expected = net.conv(net.quant(images())).dequantize().numpy()
    np.testing.assert_array_equal(maps.feature_maps["conv"], expected)


def test_models_quantised_through_fx_keep_their_names() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).train()
    prepared = quantize_fx.prepare_qat_fx(net, quantization.get_default_qat_qconfig_mapping("fbgemm"), (images(),))
    prepared(images())
    assert select(survey(prepared, images()), "auto", kind=Kind.FILTERS) == ("0", "3")
    if "fbgemm" in torch.backends.quantized.supported_engines:
        converted = quantize_fx.convert_fx(prepared.eval())
        assert select(survey(converted, images()), "auto", kind=Kind.FEATURE_MAPS) == ("0", "3")
        look = capture(converted, images(), filter_layers=("0",), map_layers=(), step=0, epoch=0, global_step=0)
        np.testing.assert_array_equal(look.filters["0"], getattr(converted, "0").weight().dequantize().numpy())
