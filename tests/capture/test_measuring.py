"""What the numbers of a layer need: which filters, which positions, and that nothing is disturbed for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from cnnlog.capture.capture import capture, survey
from cnnlog.capture.measuring import (
    POSITIONS_LIMIT,
    ROWS_LIMIT,
    WEIGHTS_LIMIT,
    chosen_filters,
    measured,
    peaks,
    sampled,
    samples_of,
    weights_now,
)
from cnnlog.snapshot import Snapshot


def snapshot(net: nn.Module, probe: torch.Tensor | None, **more: object) -> Snapshot:
    layers = measured(survey(net, probe))
    return capture(net, probe, filter_layers=(), map_layers=(), measured=layers, step=0, epoch=0, global_step=0)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (125, 1024), (256, 512)])
def test_of_a_layer_that_is_not_very_large_all_filters_are_measured(shape: tuple[int, ...]) -> None:
    assert chosen_filters(shape) is None


@pytest.mark.parametrize("shape", [(1025, 1024), (4096, 9216), (2, 2 * WEIGHTS_LIMIT), (512, 512, 3, 3)])
def test_of_a_very_large_layer_some_whole_filters_are_measured_always_the_same(shape: tuple[int, ...]) -> None:
    chosen = chosen_filters(shape)
    assert chosen is not None
    assert chosen == chosen_filters(shape)
    assert list(chosen) == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < shape[0]
    assert len(chosen) == 1 or len(chosen) * math.prod(shape[1:]) <= WEIGHTS_LIMIT
    distance = chosen[1] - chosen[0] if len(chosen) > 1 else shape[0]
    assert chosen == tuple(range(0, shape[0], distance))
    assert len(range(0, shape[0], distance - 1)) * math.prod(shape[1:]) > WEIGHTS_LIMIT


@pytest.mark.parametrize("shape", [(1, 5, 30, 40), (2, 5, 3, 3), (1, 5, 7), (3, 5, 4, 6, 6), (300, 5, 8, 8), (2, 5)])
def test_positions_are_a_lattice_of_each_image(shape: tuple[int, ...]) -> None:
    output = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    taken = sampled(output, channels_last=False)
    assert taken is not None
    assert taken.shape == (samples_of(shape, channels_last=False), 5)
    rows = output.movedim(1, -1).reshape(-1, 5).numpy()
    at = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in taken]
    assert at == sorted(set(at))
    an_image = len(taken) // shape[0]
    assert an_image * shape[0] == len(taken)
    assert an_image <= POSITIONS_LIMIT
    assert len(taken) <= max(ROWS_LIMIT, shape[0])
    last = sampled(output.movedim(1, -1).contiguous(), channels_last=True)
    np.testing.assert_array_equal(taken, last)


def test_the_peak_of_a_channel_is_its_largest_value() -> None:
    output = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(peaks(output, channels_last=False), output.numpy().max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(peaks(output, channels_last=True), output.numpy().max(axis=(0, 1, 2)))
    output[0, 1, 0, 0] = math.nan
    found = peaks(output, channels_last=False)
    assert found is not None
    assert np.isnan(found).tolist() == [False, True, False]


class Mixed(nn.Module):
    """Convolutions of one to three axes, transposed ones, linear layers on tokens, and a head without a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, 2)
        self.line, self.back = nn.Conv1d(4, 8, 3), nn.ConvTranspose1d(8, 4, 3)
        self.deep = nn.Conv3d(4, 2, 1)
        self.token, self.unused = nn.Linear(4, 5), nn.Linear(7, 2)
        self.norm, self.table = nn.LayerNorm(5), nn.Embedding(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.flat(x)))
        x = self.back(self.line(x.flatten(2)))
        self.deep(x[:, :, None, None])
        tokens: torch.Tensor = self.norm(self.token(x.transpose(1, 2)))
        return tokens


def test_convolutions_and_linear_layers_of_all_kinds_are_measured() -> None:
    net, probe = Mixed(), torch.rand(2, 3, 8, 8)
    taken = snapshot(net, probe)
    assert set(taken.weights) == {"flat", "up", "line", "back", "deep", "token", "unused"}
    assert {name: array.shape for name, array in taken.weights.items()} == {
        "flat": (6, 3, 3, 3),
        "up": (4, 6, 2, 2),
        "line": (8, 4, 3),
        "back": (4, 8, 3),
        "deep": (2, 4, 1, 1),
        "token": (5, 4),
        "unused": (2, 7),
    }
    assert set(taken.outputs) == set(taken.weights) - {"unused"}
    assert {name: array.shape[1] for name, array in taken.outputs.items()} == {
        **{"flat": 6, "up": 4, "line": 8, "back": 4, "deep": 2, "token": 5}
    }
    assert set(taken.peaks) == {"flat"}


def test_the_numbers_of_a_large_layer_are_of_the_chosen_filters() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6000), nn.ReLU(), nn.Linear(6000, 2))
    taken = snapshot(net, torch.rand(1, 3, 8, 8))
    chosen = chosen_filters((6000, 192))
    assert chosen is not None
    np.testing.assert_array_equal(taken.weights["1"], net.get_parameter("1.weight").detach().numpy()[list(chosen)])


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_is_measured_as_it_is_used(wrap: object) -> None:
    conv: nn.Conv2d = wrap(nn.Conv2d(3, 4, 3))  # type: ignore[operator]
    taken = snapshot(nn.Sequential(conv, nn.ReLU()), torch.rand(1, 3, 8, 8))
    with torch.no_grad():
        conv.eval()
        used = conv.weight.numpy()
    np.testing.assert_allclose(taken.weights["0"], used, rtol=1e-6)


def test_weights_before_a_step_are_copies_of_plain_layers_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)))
    layers = measured(survey(net, None))
    held = weights_now(dict(net.named_modules()), layers)
    assert set(held) == {"0"}
    before = held["0"].clone()
    with torch.no_grad():
        net.get_parameter("0.weight").add_(1)
    torch.testing.assert_close(held["0"], before, rtol=0, atol=0)


class Standardised(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


def test_a_linear_layer_that_computes_its_weight_is_measured_by_what_it_multiplies_with() -> None:
    net = nn.Sequential(nn.Flatten(), Standardised(12, 5), nn.ReLU(), nn.Linear(5, 2))
    taken = snapshot(net, torch.rand(1, 3, 2, 2)).weights["1"]
    np.testing.assert_allclose(np.linalg.norm(taken, axis=1), 1, rtol=1e-6)


def test_a_convolution_that_is_patched_on_the_instance_is_measured_by_what_it_convolves_with() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    conv = net[0]
    assert isinstance(conv, nn.Conv2d)
    plain = conv._conv_forward
    conv.__dict__["_conv_forward"] = lambda x, weight, bias: plain(x, 3 * weight, bias)
    taken = snapshot(net, torch.rand(1, 3, 6, 6)).weights["0"]
    np.testing.assert_allclose(taken, 3 * conv.weight.detach().numpy(), rtol=1e-6)


class WritesAfterUse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x)
        with torch.no_grad():
            self.conv.weight.mul_(0.5)
        return result


def test_of_a_network_that_writes_its_weights_those_are_taken_that_it_used() -> None:
    net = WritesAfterUse()
    used = net.conv.weight.detach().numpy().copy()
    for _ in range(2):
        np.testing.assert_array_equal(snapshot(net, torch.rand(1, 3, 6, 6)).weights["conv"], used)


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's way of a layer norm, without the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), LayerNormLast(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(F.relu(self.norm(self.conv(x))).mean((1, 2)))
        return result


class LayerNormLast(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


def test_peaks_are_of_the_channels_where_a_norm_moves_them_last() -> None:
    net = ChannelsLastNorm()
    with torch.no_grad():
        net.norm.bias[:6], net.norm.bias[6:] = -100, 100
    highest = snapshot(net, torch.rand(1, 3, 12, 12)).peaks["conv"]
    assert highest.shape == (8,)
    assert (highest > 0).sum() == 2


@pytest.mark.parametrize("images", [1, 3])
def test_what_leaves_a_device_is_in_its_order_before_it_leaves(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from CUDA has not arrived when `to_host` returns: nothing may be reordered, or read, after it."""
    output = torch.rand(images, 5, 9, 7, dtype=torch.float64)  # takes the way of whatever is not float32 on the host
    monkeypatch.setattr("cnnlog.capture.measuring.to_host", lambda tensor, **_: tensor)
    left: Any = sampled(output, channels_last=False)
    monkeypatch.undo()
    expected = sampled(output.float(), channels_last=False)
    assert isinstance(left, torch.Tensor)
    np.testing.assert_array_equal(left.float().numpy(), expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "meta"])
def test_a_buffer_whose_bytes_cannot_be_compared_stops_nothing(layout: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    dense = torch.eye(4)
    buffer = dense.to("meta") if layout == "meta" else dense.to_sparse(layout=getattr(torch, layout))
    net.register_buffer("graph", buffer, persistent=False)
    for _ in range(2):
        assert snapshot(net, torch.rand(1, 3, 6, 6)).weights["0"].shape == (4, 3, 3, 3)
    assert net.get_buffer("graph") is buffer
