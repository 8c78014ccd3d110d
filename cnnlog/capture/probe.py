"""The fixed input that a network is watched on: loaded, checked, and named by a fingerprint."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cnnlog.capture.chart import CHART_LIMIT, test_chart
from cnnlog.capture.images import ImageLike, fitted, is_whole, open_image, rgb, several_images, unit_range
from cnnlog.capture.rng import generators_in, kept_rng

Pixels = npt.NDArray[np.uint8]
_IMAGE_KEYS = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "data")
NUMBER_LIMIT = 1e18  # its square is a float32, too


class Probe:
    """One or several images that never change, in the form in which the network takes them.

    The same input is run through the network at every snapshot, so that feature maps of two steps can be compared.
    Build a probe with `Probe.from_images`, `Probe.from_tensor`, `Probe.from_dataset` or `Probe.chart`. Do not change it
    afterwards.

    Args:
        tensor: images `[N, C, H, W]`, one image `[C, H, W]`, or clips `[N, C, T, H, W]`, floating point, scaled and
            normalised as in training. The tensor is copied.
        names: one name for each image; by default `image 0`, `image 1`, ...
        mean: the mean that was subtracted from each channel, if the values are normalised. It serves `pictures` only.
        std: the standard deviation that each channel was divided by. It serves `pictures` only.

    Attributes:
        tensor: `[N, C, H, W]`, or clips `[N, C, T, H, W]`, float32, on the CPU.
        pictures: for each image a picture for people, uint8 `[H, W, 3]`; of a clip it is the middle frame. Where mean
            and standard deviation are known, the normalisation is undone. Where they are not and values lie outside 0
            to 1, the smallest value is black and the largest one white.
        names: one name for each image.
        fingerprint: SHA-256 of shape and values, in hex. Two runs with the same fingerprint looked at the same input.

    Raises:
        ValueError: the tensor has another number of axes, is empty, is not floating point, or holds NaN or infinity;
            or the number of names, means or standard deviations does not fit.
        TypeError: an argument is of a wrong type.

    Example:
        >>> probe = Probe.chart(64)
        >>> probe.tensor.shape, probe.names
        (torch.Size([1, 3, 64, 64]), ('chart',))
    """

    # A plain class: jsonargparse takes a dataclass for a group of options, and no class_path for it.
    __slots__ = ("_checksum", "fingerprint", "names", "pictures", "tensor")

    def __init__(
        self,
        tensor: torch.Tensor,
        *,
        names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.tensor = _checked(tensor)
        self.names = _names(names) if names is not None else tuple(f"image {i}" for i in range(len(self.tensor)))
        if len(self.names) != len(self.tensor):
            raise ValueError(f"A probe has one name an image: {len(self.tensor)} images, {len(self.names)} names.")
        self.pictures = tuple(_picture(image, mean, std) for image in self.tensor.numpy())
        digest = hashlib.sha256(repr(tuple(self.tensor.shape)).encode())
        digest.update(self.tensor.numpy().astype("<f4").tobytes())
        self.fingerprint = digest.hexdigest()
        self._checksum = _checksum(self.tensor)

    def __repr__(self) -> str:
        return f"Probe({', '.join(self.names)}; {list(self.tensor.shape)}, {self.fingerprint[:8]})"

    def is_intact(self) -> bool:
        """Whether the values are those that the fingerprint names. It costs much less than the fingerprint itself."""
        return _checksum(self.tensor) == self._checksum

    @classmethod
    def from_images(
        cls,
        # Sequence[str] stands for YAML: jsonargparse knows no PathLike, and would make one string of a list of paths.
        images: Sequence[str] | ImageLike | Sequence[ImageLike],
        *,
        transform: Callable[[Any], Any] | None = None,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Probe:
        """Make a probe of image files or PIL images.

        Images of any mode are converted to RGB and turned upright. Say how they become what the network takes: either
        by `transform`, or by `size`, `mean` and `std`. Without any of these the network gets values from 0 to 1 in the
        size of the file.

        Args:
            images: the path of an image file, a PIL image, or a list of these.
            transform: a function of a PIL image that returns a tensor `[C, H, W]`, such as torchvision's
                `weights.transforms()`. Random generators are left where they were. If the transform normalises,
                `Probe.pictures` undoes that.
            size: height and width in pixels: `(height, width)`, or one number for both. The image is scaled to cover
                this size and cut to its centre.
            mean: what to subtract from each channel, whose values are from 0 to 1; for example
                `(0.485, 0.456, 0.406)`.
            std: what to divide each channel by after that; for example `(0.229, 0.224, 0.225)`.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is empty, damaged or no image; the images end up with different sizes; the transform
                fails; or you gave a transform and one of `size`, `mean` and `std`.
            TypeError: an argument is of a wrong type.
        """
        several = several_images(images)
        if transform is not None and not callable(transform):
            raise TypeError(f"A transform is called with an image, but {transform!r} cannot be called.")
        if transform is not None and (size is not None or mean is not None or std is not None):
            raise ValueError("Give either a transform or size, mean and std, not both: the transform does it all.")
        opened = [open_image(image, i) for i, image in enumerate(several)]
        names = [name for name, _ in opened]
        if transform is None:
            tensors = [_normalised(unit_range(fitted(image, size)), mean, std) for _, image in opened]
        else:
            mean, std = _normalisation(transform)
            with kept_rng(generators_in([transform], depth=4)):
                tensors = [_transformed(transform, image, name) for name, image in opened]
        return cls(_stacked(tensors, names), names=names, mean=mean, std=std)

    @classmethod
    def from_tensor(
        cls,
        tensor: torch.Tensor,
        *,
        names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Probe:
        """Make a probe of a tensor that the network takes as it is.

        Args:
            tensor: images `[N, C, H, W]`, one image `[C, H, W]`, or clips `[N, C, T, H, W]`, floating point, scaled and
                normalised as in training. The tensor is copied.
            names: one name for each image; by default `image 0`, `image 1`, ...
            mean: the mean that was subtracted from each channel. It serves `Probe.pictures` only.
            std: the standard deviation that each channel was divided by. It serves `Probe.pictures` only.

        Raises:
            ValueError: the tensor has another number of axes, is empty, is not floating point, or holds NaN or
                infinity; or the number of names, means or standard deviations does not fit.
            TypeError: an argument is of a wrong type.

        Example:
            >>> Probe.from_tensor(torch.rand(2, 3, 32, 32), names=["cat", "dog"]).names
            ('cat', 'dog')
        """
        return cls(tensor, names=names, mean=mean, std=std)

    @classmethod
    def from_dataset(cls, dataset: Any, indices: Sequence[int] = (0,)) -> Probe:
        """Make a probe of images of a data set. Every random generator is left where it was.

        Args:
            dataset: a data set with `__getitem__`. A sample may be the image `[C, H, W]`, a clip `[C, T, H, W]`, or a
                tuple or dict that holds one. If its transform normalises, `Probe.pictures` undoes that.
            indices: which samples to take, as whole numbers; negative ones count from the end.

        Raises:
            TypeError: the data set cannot be indexed, or `indices` are not whole numbers.
            ValueError: there is no such index, no image in a sample, or the images have different sizes.

        Example:
            >>> images = torch.utils.data.TensorDataset(torch.rand(10, 3, 32, 32), torch.zeros(10))
            >>> Probe.from_dataset(images, indices=[0, 3]).names
            ('TensorDataset[0]', 'TensorDataset[3]')
        """
        kind = type(dataset).__name__
        if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"A probe can be taken only from a dataset with an index, and {kind} has none: taking its first image "
                "would use it up; pass a Probe, e.g. Probe.from_images(...)."
            )
        if not isinstance(indices, Sequence) or not all(is_whole(index) for index in indices):
            raise TypeError(f"Images of a dataset are named by whole numbers, e.g. indices=[0, 5], not by {indices!r}.")
        try:
            length = len(dataset)
        except (TypeError, NotImplementedError):
            length = None
        for index in indices:
            if length is not None and not -length <= index < length:
                raise ValueError(f"Image {index} was asked for, but the {kind} has {length}: choose another index.")
        with kept_rng(generators_in([dataset], depth=5)):
            samples = [_taken(dataset, index) for index in indices]
        names = [f"{kind}[{index}]" for index in indices]
        tensors = [_sample_image(sample, name) for sample, name in zip(samples, names, strict=True)]
        mean, std = _normalisation(dataset)
        return cls(_stacked(tensors, names), names=names, mean=mean, std=std)

    @classmethod
    def chart(
        cls, size: int = 224, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Probe:
        """Make a probe of a drawn test chart: a zone plate, gratings at many angles and frequencies, edges, colours.

        Args:
            size: height and width in pixels, from 32 to 2048.
            mean: what to subtract from each of the 3 channels, whose values are from 0 to 1, if your network is trained
                on normalised images; for example `(0.485, 0.456, 0.406)`.
            std: what to divide each channel by after that; for example `(0.229, 0.224, 0.225)`.

        Raises:
            ValueError: `size`, `mean` or `std` has an impossible value.
            TypeError: `mean` or `std` is of a wrong type.

        Example:
            >>> Probe.chart(64).tensor.shape
            torch.Size([1, 3, 64, 64])
        """
        if not is_whole(size) or not 32 <= size <= CHART_LIMIT:
            raise ValueError(
                f"A test chart needs at least 32 pixels a side to show anything, and {CHART_LIMIT} at most, "
                f"but size={size!r}."
            )
        unit = torch.from_numpy(test_chart(size)).permute(2, 0, 1)
        return cls(_normalised(unit, mean, std), names=["chart"], mean=mean, std=std)


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, (str, bytes)):
        raise TypeError(f"The names of a probe's images are a sequence of texts, not {names!r}.")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"The names of a probe's images are texts, but they are {list(names)!r}.")
    return tuple(names)


def _taken(dataset: Any, index: int) -> Any:
    """A sample. If somebody's data set fails, the message names it."""
    try:
        return dataset[index]
    except Exception as error:
        kind = type(dataset).__name__
        raise ValueError(
            f"Image {index} could not be taken from the {kind} ({type(error).__name__}: {error}): pass a Probe."
        ) from error


def _transformed(transform: Callable[[Any], Any], image: Image.Image, name: str) -> torch.Tensor:
    try:
        made = transform(image)
    except Exception as error:
        raise ValueError(
            f"The transform could not take {name!r}, a PIL image in RGB ({type(error).__name__}: {error})."
        ) from error
    return _as_image(made, f"The transform of {name!r}")


def default_probe(dataset: Any) -> Probe:
    """The first image of a data set. Every random generator is left where it was.

    Args:
        dataset: with `__getitem__`.
    """
    return Probe.from_dataset(dataset, (0,))


def _checksum(tensor: torch.Tensor) -> int:
    values: Any = tensor.contiguous().numpy()
    return zlib.crc32(values)


def _checked(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"A probe is a tensor [N, C, H, W] or [C, H, W], not {type(tensor).__name__}.")
    shape = list(tensor.shape)
    if tensor.dim() not in (3, 4, 5) or 0 in shape:
        raise ValueError(
            "A probe is a tensor [N, C, H, W], [C, H, W], or [N, C, T, H, W] of clips, with at least one pixel, "
            f"but this is {shape}."
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"A probe holds what the network takes, in floating point, but this is {tensor.dtype}: "
            "scale and normalise it as in training, e.g. tensor.float() / 255."
        )
    several = tensor if tensor.dim() > 3 else tensor[None]
    copied = several.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    # as_subclass: torchvision's tv_tensors would otherwise follow the probe into the network
    copied = copied.as_subclass(torch.Tensor)
    bad = int((~torch.isfinite(copied)).sum())
    if bad:
        raise ValueError(f"A probe is finite, but {bad} of this one's {copied.numel()} values are NaN or infinite.")
    return copied


def _as_image(value: Any, source: str) -> torch.Tensor:
    """One image `[C, H, W]` in floating point out of what a transform or dataset gave."""
    if isinstance(value, Image.Image):
        return unit_range(rgb(value))
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        if value.dim() == 4 and len(value) == 1:
            value = value[0]
        if value.dim() == 3 and value.dtype == torch.uint8:
            value = value.float() / 255
        if value.dim() == 3 and value.is_floating_point():
            image: torch.Tensor = value.detach().cpu().float()
            return image
        what = f"{value.dtype} {list(value.shape)}"
    else:
        what = type(value).__name__
    raise ValueError(f"{source} should be an image [C, H, W] in floating point, but it is {what}; pass a Probe.")


def _sample_image(sample: Any, name: str) -> torch.Tensor:
    """The image `[C, H, W]` in a sample, or else its clip `[C, T, H, W]`."""
    if isinstance(sample, Mapping):
        keys = [key for key in _IMAGE_KEYS if key in sample] or list(sample)
        candidates = [sample[key] for key in keys]
    else:
        candidates = [sample]
        while candidates and isinstance(candidates[0], (tuple, list)):
            candidates = list(candidates[0])
    for value in candidates:
        if isinstance(value, Image.Image) or getattr(value, "ndim", 0) == 3:
            return _as_image(value, f"The image of {name}")
    for value in candidates:
        if isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point():
            return value.detach().cpu().float()
    found = ", ".join(type(value).__name__ for value in candidates) or type(sample).__name__
    raise ValueError(f"No image [C, H, W] was found in {name}, which holds {found}; pass a Probe.")


def _stacked(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        each = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
        raise ValueError(f"The images of a probe have one size, but these have several: {each}; give size=.")
    if not tensors:
        raise ValueError("A probe needs at least one image: the sequence of indices is empty.")
    return torch.stack(list(tensors))


def _normalised(unit: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    if mean is None and std is None:
        return unit
    shift, scale = _per_channel(mean, std, len(unit))
    return (unit - torch.from_numpy(shift)) / torch.from_numpy(scale)


def _per_channel(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    shift, scale = (
        _finite(what, given)
        for what, given in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std))
    )
    for what, values in (("mean", shift), ("std", scale)):
        if len(values) not in (1, channels):
            raise ValueError(f"{what} has one value a channel, but {len(values)} came for {channels} channels.")
    if not (scale > 0).all():
        raise ValueError(f"std is above 0 in every channel, but it is {scale.ravel().tolist()}.")
    return shift, scale


def _finite(what: str, given: Any) -> npt.NDArray[np.float32]:
    """The given numbers as `[C, 1, 1]` or `[1, 1, 1]`."""
    try:
        values = np.asarray(given, dtype=np.float64).reshape(-1, 1, 1)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{what} has one number a channel, e.g. (0.485, 0.456, 0.406), not {given!r}.") from error
    if isinstance(given, (str, bytes)) or not (abs(values) < NUMBER_LIMIT).all():
        raise ValueError(f"{what} has one finite number a channel, but it is {given!r}.")
    return values.astype(np.float32)


def _normalisation(thing: Any, depth: int = 4) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and standard deviation of the `Normalize` in a transform, or in the transform of a dataset."""
    mean, std = getattr(thing, "mean", None), getattr(thing, "std", None)
    if _numbers(mean) and _numbers(std):
        return tuple(float(m) for m in mean), tuple(float(s) for s in std)  # type: ignore[union-attr]
    if depth == 0 or thing is None or isinstance(thing, (str, torch.Tensor, np.ndarray)):
        return None, None
    parts: Iterable[Any] = [getattr(thing, key, None) for key in ("transform", "transforms", "dataset", "datasets")]
    if isinstance(thing, (list, tuple)):
        parts = thing[:64]
    elif isinstance(thing, torch.nn.Module):
        parts = [*parts, *thing.children()]
    for part in parts:
        found = _normalisation(part, depth - 1)
        if found[0] is not None:
            return found
    return None, None


def _numbers(values: Any) -> bool:
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return values.ndim == 1
    return isinstance(values, (list, tuple)) and all(isinstance(v, (int, float)) for v in values) and len(values) > 0


def _picture(image: npt.NDArray[np.float32], mean: Sequence[float] | None, std: Sequence[float] | None) -> Pixels:
    """`[C, H, W]`, or `[C, T, H, W]`, as the network takes it -> uint8 `[H, W, 3]` for people."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    if mean is not None or std is not None:
        shift, scale = _per_channel(mean, std, len(image))
        image = image * scale + shift
    elif image.min() < 0 or image.max() > 1:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low) if high > low else np.zeros_like(image)
    colour = image if len(image) == 3 else np.broadcast_to(image.mean(axis=0), (3, *image.shape[1:]))
    picture: Pixels = np.ascontiguousarray(np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    return picture
