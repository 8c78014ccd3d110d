"""Trainings whose networks are not like others: they train, watched, without a warning and bit for bit as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training import TinyCNN, events, fit, image_steps, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
from cnnlog.kinds import Kind
from cnnlog.recording.drawer import Drawer, Look
from cnnlog.runs.manifest import WatchedLayer
from cnnlog.runs.steps import strided


class Double(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def training_step(self, batch: Sequence[torch.Tensor], _: int) -> torch.Tensor:
        return super().training_step([batch[0].double(), batch[1]], _)


class Taught(TinyCNN):
    """Beside the network a scripted teacher, and a lazy part that the first batches do not reach."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out; its models are still there
            self.teacher = torch.jit.script(nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)))
        self.later = nn.LazyConv2d(4, 3)

    def training_step(self, batch: Sequence[torch.Tensor], _: int) -> torch.Tensor:
        return super().training_step(batch, _) + self.teacher(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.net.parameters(), *self.head.parameters(), *self.teacher.parameters()], lr=0.1)


class Pairs(TinyCNN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = super().forward(torch.cat([x, x.flip(-1)])).chunk(2)
        return first - second


class Responding(TinyCNN):
    """A response normalisation after the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, Response(6))


class Response(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * x.norm(dim=(2, 3), keepdim=True)


class OfDict(TinyCNN):
    def forward(self, batch: Any) -> torch.Tensor:
        return self.head(self.net(batch["image"]).mean((2, 3)))

    def training_step(self, batch: Sequence[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self({"image": batch[0]}), batch[1])


def trained(build: Callable[[], TinyCNN], folder: Path, monitors: list[Any]) -> TinyCNN:
    torch.manual_seed(0)
    module = build()
    fit(trainer(folder, monitors), module)
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated.*")
@pytest.mark.parametrize(
    ("build", "through"), [(Double, None), (Taught, None), (Pairs, None), (Responding, None), (OfDict, "net")]
)
def test_they_are_watched_and_train_bit_for_bit(
    build: Callable[[], TinyCNN], through: str | None, tmp_path: Path
) -> None:
    alone = trained(build, tmp_path / "alone", [])
    monitors = [FilterMonitor(through=through), FeatureMapMonitor(Probe.chart(32), through=through)]
    watched = trained(build, tmp_path / "watched", monitors)
    for (name, before), after in zip(alone.named_parameters(), watched.parameters(), strict=True):
        assert type(before) is type(after)
        assert isinstance(before, nn.UninitializedParameter) or torch.equal(before, after), name
    run = cnnlog.open_run(next((tmp_path / "watched").rglob("manifest.json")).parent)
    assert [layer.name.startswith("net") for layer in run.manifest.layers] == [True, True]
    maps = run.feature_maps("net.0", step=max(run.steps))
    assert maps.shape[:2] == (2 if build is Pairs else 1, 6)


def test_each_of_several_maps_an_image_has_a_tag_that_says_so(tmp_path: Path) -> None:
    trained(Pairs, tmp_path, [FeatureMapMonitor(Probe.chart(32), "net.0")])
    found = events(next(tmp_path.rglob("events*")).parent)
    tags = [tag for tag in image_steps(found) if tag.startswith("feature_maps/")]
    assert [tag.rpartition("/")[2] for tag in tags] == ["image0", "image1"]
    descriptions = [found.summary_metadata[tag].summary_description for tag in tags]
    assert "number 1 of the 2 that it makes of it" in descriptions[1]


class Unknown(TinyCNN):
    """A layer behind something that mixes its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.net(x)
        mixed = self.mixed(torch.einsum("nchw,ncvw->nhvc", features, features))
        return self.head(mixed.mean((1, 2)))


def test_where_the_channels_are_can_be_said_in_an_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'mixed' \(Identity\) .* say channels_last=True or channels_last=False"):
        trained(Unknown, tmp_path / "refused", [FeatureMapMonitor(Probe.chart(32), ["mixed"])])
    trained(Unknown, tmp_path / "said", [FeatureMapMonitor(Probe.chart(32), ["mixed"], channels_last=True)])
    run = cnnlog.open_run(next((tmp_path / "said").rglob("manifest.json")).parent)
    assert run.feature_maps("mixed", step=0).shape == (1, 10, 14, 14)
    with cnnlog.watch(
        Unknown(), Probe.chart(32), tmp_path / "own", map_layers="mixed", channels_last=False, tensorboard=False
    ) as watcher:
        watcher.snapshot(0)
    assert cnnlog.open_run(watcher.folder).feature_maps("mixed", step=0).shape == (1, 14, 14, 10)
    with pytest.raises(TypeError, match="expected channels_last as True, False or None, got 'last'"):
        FeatureMapMonitor(channels_last="last")  # type: ignore[arg-type]


class Frames(TinyCNN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def test_the_first_clip_of_the_data_is_watched_frame_by_frame(tmp_path: Path) -> None:
    data = TensorDataset(torch.rand(8, 5, 3, 16, 16), torch.arange(8) % 3)
    trainer(tmp_path, [FeatureMapMonitor(), FilterMonitor()]).fit(Frames(), DataLoader(data, 4))
    run = cnnlog.open_run(next(tmp_path.rglob("manifest.json")).parent)
    assert run.feature_maps("net.0", step=0).shape == (5, 6, 16, 16)
    assert run.layer("net.0").maps_an_image == 5


def test_a_strip_has_the_width_of_the_grid_and_rows_that_can_be_seen() -> None:
    layer = WatchedLayer("conv", "00_conv", "Conv1d", output_shape=(1, 8, 1, 1000))
    drawer = Drawer(layer, Kind.FEATURE_MAPS, Look())
    maps = np.random.default_rng(0).standard_normal((1, 8, 1, 1000)).astype(np.float32)
    shown = drawer.shown(maps)
    assert shown.shape == (1, 8, 1, 348)
    drawer.see(shown)
    picture = drawer.pictures(shown, 0, 0)[0]
    assert picture.size == (350, 8 * 7 + 1)
    assert drawer.strip(strided([0, 1], 2), [shown, shown]).size[1] >= 8 * 7 + 1


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.fft.fft2(x)).abs()


def test_what_turns_a_complex_filter_changes_its_numbers_and_not_its_picture(tmp_path: Path) -> None:
    net = Spectral()
    with cnnlog.watch(net, Probe.from_tensor(torch.rand(1, 1, 12, 12)), tmp_path, tensorboard=False) as watcher:
        watcher.snapshot(0)
        with torch.no_grad():
            net.conv.weight.mul_(1j)
        watcher.snapshot(1)
    run = cnnlog.open_run(watcher.folder)
    np.testing.assert_allclose(run.filters("conv", step=1), run.filters("conv", step=0), rtol=1e-6)
    np.testing.assert_allclose(run.feature_maps("conv", step=1), run.feature_maps("conv", step=0), rtol=1e-5)
    for number in ("weight_change", "function_change"):
        assert run.numbers(number, "conv", step=1)[0] == pytest.approx(2**0.5, rel=1e-5)
    np.testing.assert_allclose(run.numbers("filter_angle", "conv", step=1), 90, atol=1e-3)
