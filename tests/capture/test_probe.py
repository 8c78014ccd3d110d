"""The probe: what is loaded, what is converted, what is refused, and that nothing random moves."""

from __future__ import annotations

import os
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from cnnlog import Probe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red grows to the right, green downward; the left third is blue."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.where(x < width / 3, 255, 0)], axis=2)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def seen(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    image.save(path, **options)
    return Probe.from_images(path).pictures[0].astype(int)


def test_an_image_becomes_a_tensor_from_zero_to_one(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    probe = Probe.from_images(tmp_path / "a.png")
    assert probe.tensor.shape == (1, 3, 30, 40)
    assert probe.tensor.dtype == torch.float32
    assert probe.names == ("a.png",)
    assert probe.tensor[0, 0, 0].tolist() == pytest.approx(np.rint(np.linspace(0, 255, 40)) / 255)
    np.testing.assert_array_equal(probe.pictures[0], np.asarray(picture()))


def test_size_covers_and_cuts_to_the_centre() -> None:
    probe = Probe.from_images([picture(), picture(50, 80)], size=(20, 24))
    assert probe.tensor.shape == (2, 3, 20, 24)
    square = Probe.from_images(picture(90, 30), size=30).tensor[0]
    torch.testing.assert_close(square, Probe.from_images(picture(90, 30)).tensor[0, :, :, 30:60])


@pytest.mark.parametrize("normalise", ["preset", "compose", "arguments"])
def test_the_picture_is_what_the_network_sees_with_the_normalisation_undone(normalise: str) -> None:
    compose = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    preset = ImageClassification(crop_size=30, resize_size=30)
    if normalise == "arguments":
        probe = Probe.from_images(picture(30, 30), mean=MEAN, std=STD)
    else:
        probe = Probe.from_images(picture(30, 30), transform=preset if normalise == "preset" else compose)
    assert probe.tensor.min() < -1
    np.testing.assert_array_equal(probe.pictures[0], np.asarray(picture(30, 30)))


def test_without_known_normalisation_the_picture_is_stretched() -> None:
    gray = Probe.from_tensor(torch.linspace(-3, 5, 16).reshape(1, 4, 4)).pictures[0]
    assert gray.shape == (4, 4, 3)
    assert gray.min() == 0
    assert gray.max() == 255
    assert Probe.from_tensor(torch.full((3, 2, 2), -2.0)).pictures[0].max() == 0


# --- awkward image files


def test_sixteen_bit_gray_keeps_its_gradation(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(1, 64).repeat(4, axis=0)
    got = seen(Image.fromarray(ramp), tmp_path / "deep.png")
    np.testing.assert_allclose(got[0, :, 0], ramp[0] / 257, atol=0.51)


def test_a_float_image_is_taken_from_zero_to_one(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float32).reshape(1, 32).repeat(4, axis=0)
    got = seen(Image.fromarray(ramp), tmp_path / "float.tiff")
    np.testing.assert_allclose(got[0, :, 0], ramp[0] * 255, atol=0.51)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("L", "png", 0), ("1", "png", 0), ("P", "png", 0), ("CMYK", "tiff", 0), ("CMYK", "jpg", 30), ("YCbCr", "jpg", 30)],
)
def test_other_modes_become_their_rgb(mode: str, suffix: str, tolerance: int, tmp_path: Path) -> None:
    image = picture().convert(mode)
    got = seen(image, tmp_path / f"a.{suffix}", **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    np.testing.assert_allclose(got, np.asarray(image.convert("RGB"), dtype=int), atol=tolerance)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    got = seen(image, tmp_path / "a.png")
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [255, 0, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 255, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert seen(palette, tmp_path / "p.png", transparency=0)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_an_exif_rotated_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    got = seen(picture(), tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    assert got.shape == (40, 30, 3)
    np.testing.assert_allclose(got, np.asarray(picture().transpose(Image.Transpose.ROTATE_270), dtype=int), atol=25)


# --- refusals


def _damaged(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.png"
    picture(200, 200).save(path)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("missing", FileNotFoundError, "no probe image at"),
        ("empty", ValueError, "is empty"),
        ("truncated", ValueError, "is damaged"),
        ("text", ValueError, "is not an image"),
        ("folder", ValueError, "is a folder"),
    ],
)
def test_files_that_are_no_image_are_refused_by_name(
    kind: str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"{kind}.png") as refusal:
        Probe.from_images(_damaged(kind, tmp_path))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: Probe.from_tensor(torch.full((3, 4, 4), torch.nan)), ValueError, "48 of this one's 48 values are NaN"),
        (lambda: Probe.from_tensor(torch.full((3, 4, 4), torch.inf)), ValueError, "NaN or infinite"),
        (lambda: Probe.from_tensor(torch.zeros(3)), ValueError, r"but this is \[3\]"),
        (lambda: Probe.from_tensor(torch.zeros(0, 3, 4, 4)), ValueError, "at least one pixel"),
        (lambda: Probe.from_tensor([[1.0]]), TypeError, "not list"),  # type: ignore[arg-type]
        (lambda: Probe.from_tensor(torch.zeros(2, 3, 4, 4), names=["one"]), ValueError, "2 images, 1 names"),
        (lambda: Probe.from_images([]), ValueError, "at least one image"),
        (lambda: Probe.from_images([picture(), picture(8, 8)]), ValueError, "give size="),
        (lambda: Probe.from_images(picture(), size=0), ValueError, "at least one pixel each way"),
        (lambda: Probe.from_images(picture(), size=8, transform=v2.ToTensor), ValueError, "not both"),
        (lambda: Probe.from_images(picture(), mean=(0.5, 0.5), std=(1, 1)), ValueError, "2 came for 3 channels"),
        (lambda: Probe.from_images(picture(), std=(1, 0, 1)), ValueError, "std is above 0"),
        (lambda: Probe.from_images(picture(), transform=lambda _: "word"), ValueError, "The transform of .* is str"),
        (lambda: Probe.chart(8), ValueError, "at least 32 pixels"),
    ],
)
def test_what_cannot_be_a_probe_is_refused(build: Callable[[], Probe], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build()


# --- datasets


class Samples(Dataset[Any]):
    """Draws from every generator, global and its own, for each sample."""

    def __init__(self, kind: str = "tuple") -> None:
        self.kind = kind
        self.generator = torch.Generator().manual_seed(1)
        self.transform = v2.Compose([self.augment, v2.Normalize(MEAN, STD)])
        self.numpy = np.random.default_rng(3)

    def augment(self, image: torch.Tensor) -> torch.Tensor:
        return image * (torch.rand(()) * random.random() * np.random.rand() * self.numpy.random())  # noqa: NPY002

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        image = self.transform(torch.rand(3, 8, 8, generator=self.generator))
        kinds = {"tensor": image, "tuple": (image, 4), "nested": ((image, image), 4)}
        kinds |= {"dict": {"label": 4, "image": image}, "odd dict": {"label": 4, "scan": image}, "label": (4, image[0])}
        return kinds[self.kind]


def states(dataset: Samples) -> list[object]:
    numpy = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    own = [dataset.generator.get_state().tolist(), dataset.numpy.bit_generator.state]
    return [torch.get_rng_state().tolist(), random.getstate(), numpy, *own]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "nested", "dict", "odd dict"])
def test_the_first_image_is_taken_without_moving_any_generator(kind: str) -> None:
    dataset = Samples(kind)
    before = states(dataset)
    probe = Probe.from_dataset(Subset(dataset, [2, 1]))
    assert states(dataset) == before
    assert probe.tensor.shape == (1, 3, 8, 8)
    assert probe.names == ("Subset[0]",)
    assert Probe.from_dataset(Subset(dataset, [2, 1])).fingerprint == probe.fingerprint
    dataset[0]
    assert states(dataset) != before  # it does draw: the test can fail


def test_the_normalisation_is_found_on_the_dataset() -> None:
    picture_of = Probe.from_dataset(Samples()).pictures[0]
    assert picture_of.max() < 255  # multiplied by numbers below 1, and not stretched


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("a stream may not be touched")


def test_datasets_without_a_first_image_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Stream has none: .* pass a Probe"):
        Probe.from_dataset(Stream())
    with pytest.raises(ValueError, match="Image 5 was asked for, but the Samples has 3"):
        Probe.from_dataset(Samples(), [5])
    with pytest.raises(ValueError, match=r"No image .* was found in .*, which holds int"):
        Probe.from_dataset(Samples("label"))
    with pytest.raises(ValueError, match=r"Image 0 was asked for, but the Subset has 0"):
        Probe.from_dataset(Subset(Samples(), []))


# --- identity, chart, configuration


def test_the_fingerprint_follows_values_and_shape_only() -> None:
    tensor = torch.rand(3, 8, 4, generator=torch.Generator().manual_seed(0))
    same = Probe.from_tensor(tensor.double().permute(1, 2, 0).contiguous().permute(2, 0, 1), names=["other"])
    assert Probe.from_tensor(tensor).fingerprint == same.fingerprint
    assert Probe.from_tensor(tensor).fingerprint != Probe.from_tensor(tensor.reshape(3, 4, 8)).fingerprint
    assert Probe.from_tensor(tensor).fingerprint != Probe.from_tensor(tensor + 1e-6).fingerprint


def test_a_probe_is_a_copy() -> None:
    tensor = torch.zeros(3, 4, 4)
    probe = Probe.from_tensor(tensor)
    tensor.fill_(1)
    assert probe.tensor.sum() == 0


@pytest.mark.parametrize("size", [32, 65, 224])
def test_the_chart_holds_edges_at_all_angles_all_hues_and_the_full_range(size: int) -> None:
    chart = Probe.chart(size)
    assert chart.tensor.shape == (1, 3, size, size)
    assert chart.tensor.min() >= 0
    assert chart.tensor.max() <= 1
    red, green, blue = chart.tensor[0, :, size // 2 :, size // 2 :]
    assert {(r > 0.8, g > 0.8, b > 0.8) for r, g, b in torch.stack([red, green, blue], -1).reshape(-1, 3).tolist()} == {
        (r, g, b) for r in (False, True) for g in (False, True) for b in (False, True)
    }
    gray = chart.tensor[0].mean(0)
    dx, dy = gray[1:-1, 2:] - gray[1:-1, :-2], gray[2:, 1:-1] - gray[:-2, 1:-1]
    angles = torch.atan2(dy, dx)[torch.hypot(dx, dy) > 0.3]
    assert torch.histc(angles, 12, -torch.pi, torch.pi).min() > 0


def test_the_chart_is_normalised_as_asked() -> None:
    chart = Probe.chart(64, mean=MEAN, std=STD)
    assert chart.tensor.min() < -1.5
    np.testing.assert_array_equal(chart.pictures[0], Probe.chart(64).pictures[0])


class Wants:
    """Something configured from YAML that takes a probe."""

    def __init__(self, probe: Probe | str | None = None) -> None:
        self.probe = probe


@pytest.mark.parametrize("how", ["from_images", "chart"])
def test_a_probe_can_be_written_in_yaml(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wants", sys.modules[__name__])
    picture().save(tmp_path / "a.png")
    arguments = {"images": str(tmp_path / "a.png"), "size": [16, 24]} if how == "from_images" else {"size": 32}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Wants, "wants")
    config = parser.parse_object({"wants": {"probe": {"class_path": f"cnnlog.Probe.{how}", "init_args": arguments}}})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its older name
    probe = instantiate(config).wants.probe
    assert isinstance(probe, Probe)
    assert probe.tensor.shape == ((1, 3, 16, 24) if how == "from_images" else (1, 3, 32, 32))


# --- images of more than 8 bits, and files that are none


def deep(kind: str) -> Image.Image:
    ramp = np.linspace(0, 1, 64).reshape(1, 64).repeat(4, axis=0)
    made: dict[str, Any] = {
        "signed": (ramp * 4095 - 1024).astype(np.int32),
        "32 bits": (ramp * 1e6).astype(np.int32),
        "12 bits in 16": (ramp * 4095).astype(np.uint16),
        "14 bits in 16": (ramp * 16383).astype(np.uint16),
        "float of bytes": (ramp * 255).astype(np.float32),
        "signed float": (ramp * 2 - 1).astype(np.float32),
        "dark float": (ramp * 0.06).astype(np.float32),
    }
    return Image.fromarray(made[kind])


LIMITS = {
    "signed": (-1024, 3071),
    "32 bits": (0, 1e6),
    "12 bits in 16": (0, 4095),
    "14 bits in 16": (0, 16383),
    "float of bytes": (0, 255),
    "signed float": (-1, 1),
    "dark float": (0, 0.06),
}


@pytest.mark.parametrize("through", ["file", "image", "data set"])
@pytest.mark.parametrize("kind", LIMITS)
def test_a_deep_image_says_what_is_black_and_white(kind: str, through: str, tmp_path: Path) -> None:
    image = deep(kind)
    source: Any = image
    if through == "file":
        source = tmp_path / "deep.tif"
        image.save(source)
    if through == "data set":
        with pytest.raises(ValueError, match="do not say what is black and white: give value_range="):
            Probe.from_dataset([image])
        return
    with pytest.raises(ValueError, match="do not say what is black and white: give value_range=") as refusal:
        Probe.from_images(source)
    assert "\n" not in str(refusal.value)
    shown = Probe.from_images(source, value_range=LIMITS[kind]).tensor[0, 0, 0]
    np.testing.assert_allclose(shown, np.linspace(0, 1, 64), atol=0.003)


def test_a_range_cuts_off_what_lies_beyond() -> None:
    unit = Probe.from_images(deep("signed"), value_range=(0, 1000)).tensor[0, 0, 0]
    assert unit[0] == 0
    assert unit[-1] == 1
    assert 0 < unit[20] < 1
    bytes_ = Probe.from_images(Image.new("RGB", (2, 2), (50, 100, 150)), value_range=(50, 150)).tensor[0, :, 0, 0]
    torch.testing.assert_close(bytes_, torch.tensor([0, 0.5, 1]), atol=0.003, rtol=0)
    with pytest.raises(ValueError, match="the lower one first"):
        Probe.from_images(picture(), value_range=(5, 5))
    with pytest.raises(ValueError, match="the values that become black and white"):
        Probe.from_images(picture(), value_range=(1, 2, 3))  # type: ignore[arg-type]


def sixteen_bit_colours(path: Path, highest: int) -> None:
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + np.full((4, 3), highest, ">u2").tobytes() for _ in range(4))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + n + data + struct.pack(">I", zlib.crc32(n + data)) for n, data in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_colours_of_sixteen_bits_are_not_silently_black(tmp_path: Path) -> None:
    sixteen_bit_colours(tmp_path / "bright.png", 60000)
    assert Probe.from_images(tmp_path / "bright.png").tensor.max() > 0.9
    sixteen_bit_colours(tmp_path / "dark.png", 4000)
    with pytest.raises(ValueError, match=r"dark.png' has colours of 16 bits, .* reach 15 of 255.*Probe.from_tensor"):
        Probe.from_images(tmp_path / "dark.png")


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _large(folder: Path) -> Path:
    Image.new("1", (16000, 12000)).save(folder / "slide.png")
    return folder / "slide.png"


def _lazy(folder: Path) -> Image.Image:
    image = Image.open(_damaged("truncated", folder))
    assert image.size == (200, 200)
    return image


def _closed(folder: Path) -> Image.Image:
    picture().save(folder / "a.png")
    with Image.open(folder / "a.png") as image:
        return image


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (_large, r"slide.png' is too large \(192 megapixels\).*give a smaller copy"),
        (lambda _: "/dev/zero", "'/dev/zero' is a device or a pipe, which may have no end"),
        (_fifo, "pipe' is a device or a pipe"),
        (_lazy, "probe image 0 is damaged"),
        (_closed, "probe image 0 is closed"),
        (lambda folder: folder / ("x" * 300), "cannot be looked at"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_cause(source: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    image = source(tmp_path)
    with pytest.raises(ValueError, match=said) as refusal:
        Probe.from_images(image, size=8)
    assert "\n" not in str(refusal.value)
    if isinstance(image, Image.Image):
        image.close()


def test_a_picture_below_the_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (12000, 9000)).save(tmp_path / "large.png")  # Pillow warns of it
    assert Probe.from_images(tmp_path / "large.png", size=8).tensor.shape == (1, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning", "ignore:.*quantize_per_tensor.*")
@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: torch.rand(1, 3, 4, 4, device="meta"), "on the meta device, which holds no values"),
        (lambda: torch.rand(1, 3, 4, 4).to_sparse(), r"sparse .*to_dense"),
        (lambda: torch.nested.nested_tensor([torch.rand(3, 4, 4), torch.rand(3, 5, 4)]), "nested tensor, whose parts"),
        (lambda: torch.quantize_per_tensor(torch.rand(1, 3, 4, 4), 0.1, 0, torch.quint8), "quantised: give tensor.deq"),
        (lambda: torch.rand(1, 3, 4, 4).to(torch.complex64), "complex"),
        (lambda: torch.rand(1, 3, 4, 4) > 0.5, "boolean"),
        (lambda: torch.full((1, 3, 4, 4), 1e300, dtype=torch.float64), "48 of this one's 48 values are too large for"),
        (torch.nn.UninitializedParameter, "not initialised yet"),
    ],
)
def test_tensors_without_usable_values_are_told_by_their_cause(build: Callable[[], torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        Probe.from_tensor(build())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("make", [Probe.from_images, Probe.from_tensor, Probe.chart])
def test_mean_and_standard_deviation_come_together(make: Callable[..., Probe]) -> None:
    image: Any = {Probe.from_images: picture(), Probe.from_tensor: torch.rand(3, 4, 4)}.get(make, 32)
    with pytest.raises(ValueError, match=r"mean is given without std: give both; std=1.0 changes nothing"):
        make(image, mean=MEAN)
    with pytest.raises(ValueError, match=r"std is given without mean: give both; mean=0.0 changes nothing"):
        make(image, std=STD)


# --- what the network is fed


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_whole_numbers_stay_what_they_are(kind: torch.dtype) -> None:
    values = torch.arange(48).reshape(1, 3, 4, 4).to(kind)
    probe = Probe.from_tensor(values)
    assert probe.tensor.dtype == kind
    assert torch.equal(probe.tensor, values)
    assert probe.fingerprint != Probe.from_tensor(values.float()).fingerprint
    assert probe.pictures[0].max() == (47 if kind == torch.uint8 else 255)
    from_data = Probe.from_dataset([(values[0], 3)])
    assert from_data.fingerprint == probe.fingerprint


def test_latents_and_signals() -> None:
    latents = Probe.from_tensor(torch.rand(2, 10))
    assert latents.tensor.shape == (2, 10)
    assert latents.pictures[0].shape == (1, 10, 3)
    assert latents.as_signals() is None
    image = Probe.from_tensor(torch.rand(2, 22, 500))
    assert image.tensor.shape == (1, 2, 22, 500)
    signals = image.as_signals()
    assert signals is not None
    assert signals.tensor.shape == (2, 22, 500)
    assert signals.pictures[0].shape == (22, 500, 3)
    assert signals.names == ("image 0", "image 1")
