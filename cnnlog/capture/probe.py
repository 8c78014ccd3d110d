"""The fixed input that a network is watched on: loaded, checked, and named by a fingerprint."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from cnnlog.capture.chart import CHART_LIMIT, test_chart
from cnnlog.capture.fed import raw_image
from cnnlog.capture.images import ImageLike, fitted, is_whole, open_image, rgb, several_images, unit_range
from cnnlog.capture.normalisation import limits_of, normalisation, normalisation_of, normalised, picture_of
from cnnlog.capture.rng import generators_in, kept_rng
from cnnlog.capture.tensors import checked, fingerprint_of, refuse_without_values
from cnnlog.capture.undo import Noted


class Probe:
    """One or several images that never change, in the form in which the network takes them.

    The same input is run through the network at every snapshot, so that feature maps of two steps can be compared.
    Build a probe with `Probe.from_images`, `Probe.from_tensor`, `Probe.from_dataset` or `Probe.chart`. Do not change it
    afterwards.

    Args:
        tensor: images `[N, C, H, W]`, one image `[C, H, W]`, clips `[N, C, T, H, W]`, or latents `[N, D]`, scaled and
            normalised as in training. Whole numbers, such as uint8, go to the network as they are. The tensor is
            copied. If the network takes no image of a tensor with 3 axes, it is taken for signals `[N, C, L]`.
        names: one name for each image; by default `image 0`, `image 1`, ...
        mean: the mean that was subtracted from each channel, if the values are normalised; give `std`, too. It serves
            `pictures` only.
        std: the standard deviation that each channel was divided by; give `mean`, too. It serves `pictures` only.

    Attributes:
        tensor: `[N, C, H, W]`, clips `[N, C, T, H, W]`, signals `[N, C, L]` or latents `[N, D]`, on the CPU;
            float32, or the whole numbers that the network is fed.
        pictures: for each image a picture for people, uint8 `[H, W, 3]`; of a clip it is the middle frame. A signal has
            a row for each channel, a latent has one row. Where mean and standard deviation are known, the normalisation
            is undone. uint8 is shown as it is. Otherwise, where values lie outside 0 to 1, the smallest value is black
            and the largest one white.
        names: one name for each image.
        fingerprint: SHA-256 of shape and values, in hex. Two runs with the same fingerprint looked at the same input.

    Raises:
        ValueError: the tensor has another number of axes, is empty, complex, boolean, sparse, nested, quantised or
            without values, or holds NaN or infinity; the number of names, means or standard deviations does not fit;
            or one of mean and standard deviation is given without the other.
        TypeError: an argument is of a wrong type.

    Example:
        >>> probe = Probe.chart(64)
        >>> probe.tensor.shape, probe.names
        (torch.Size([1, 3, 64, 64]), ('chart',))
    """

    # A plain class: jsonargparse takes a dataclass for a group of options, and no class_path for it.
    __slots__ = ("_checksum", "_three_axes", "fingerprint", "names", "pictures", "tensor")

    def __init__(
        self,
        tensor: torch.Tensor,
        *,
        names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        whole = checked(tensor)
        self._three_axes = whole.dim() == 3
        self._fill(whole[None] if self._three_axes else whole, names, mean, std)

    def _fill(
        self,
        tensor: torch.Tensor,
        names: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.tensor = tensor
        self.names = _names(names) if names is not None else tuple(f"image {i}" for i in range(len(self.tensor)))
        if len(self.names) != len(self.tensor):
            raise ValueError(f"A probe has one name an image: {len(self.tensor)} images, {len(self.names)} names.")
        self.pictures = tuple(picture_of(image, mean, std) for image in self.tensor.numpy())
        self.fingerprint = fingerprint_of(self.tensor)
        self._checksum = _checksum(self.tensor)

    def as_signals(self) -> Probe | None:
        """The same values as signals `[N, C, L]`, if the probe was made of a tensor with 3 axes; otherwise None.

        Example:
            >>> Probe.from_tensor(torch.rand(1, 22, 500)).as_signals().tensor.shape
            torch.Size([1, 22, 500])
        """
        if not self._three_axes:
            return None
        signals = self.tensor[0]
        return _with_three_axes(signals, names=self.names if len(self.names) == len(signals) else None)

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
        value_range: tuple[float, float] | None = None,
    ) -> Probe:
        """Make a probe of image files or PIL images.

        Images of any mode are converted to RGB and turned upright. Say how they become what the network takes: either
        by `transform`, or by `size`, `mean` and `std`. Without any of these the network gets values from 0 to 1 in the
        size of the file.

        Of images with more than 8 bits it must be known which values are black and white: unsigned 16 bits are taken
        from 0 to 65535 and floating point from 0 to 1, if their largest value is at least a quarter of that. All others
        need `value_range`: signed and 32-bit ones, and 12 or 14 bits in 16.

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
            value_range: the values of the image that become 0 (black) and 1 (white), for example `(-1024, 3071)` for
                a CT slice or `(0, 4095)` for 12 bits. Values beyond are cut off. `None` takes 0 and 255, or what is
                said above.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is empty, damaged, too large, a device or no image; it needs a `value_range`; the images
                end up with different sizes; the transform fails; you gave a transform and one of `size`, `mean` and
                `std`; or only one of `mean` and `std`.
            TypeError: an argument is of a wrong type.
        """
        several = several_images(images)
        if transform is not None and not callable(transform):
            raise TypeError(f"A transform is called with an image, but {transform!r} cannot be called.")
        if transform is not None and (size is not None or mean is not None or std is not None):
            raise ValueError("Give either a transform or size, mean and std, not both: the transform does it all.")
        limits = limits_of(value_range)
        opened = [open_image(image, i, value_range=limits) for i, image in enumerate(several)]
        names = [name for name, _ in opened]
        if transform is None:
            tensors = [normalised(unit_range(fitted(image, size)), mean, std) for _, image in opened]
        else:
            mean, std = normalisation(transform)
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
            tensor: images `[N, C, H, W]`, one image `[C, H, W]`, clips `[N, C, T, H, W]`, or latents `[N, D]`, scaled
                and normalised as in training. Whole numbers, such as uint8, go to the network as they are: nothing is
                divided by 255. The tensor is copied. If the network takes no image of a tensor with 3 axes, it is
                taken for signals `[N, C, L]`.
            names: one name for each image; by default `image 0`, `image 1`, ...
            mean: the mean that was subtracted from each channel; give `std`, too. It serves `Probe.pictures` only.
            std: the standard deviation that each channel was divided by; give `mean`, too. It serves `Probe.pictures`
                only.

        Raises:
            ValueError: the tensor has another number of axes, is empty, complex, boolean, sparse, nested, quantised or
                without values, or holds NaN or infinity; the number of names, means or standard deviations does not
                fit; or one of mean and standard deviation is given without the other.
            TypeError: an argument is of a wrong type.

        Example:
            >>> Probe.from_tensor(torch.rand(2, 3, 32, 32), names=["cat", "dog"]).names
            ('cat', 'dog')
        """
        return cls(tensor, names=names, mean=mean, std=std)

    @classmethod
    def from_dataset(cls, dataset: Any, indices: Sequence[int] = (0,)) -> Probe:
        """Make a probe of images of a data set. It and every random generator are left as they were.

        A file that the data set opens at its first read is closed again, so that workers open their own.

        Args:
            dataset: a data set with `__getitem__`. A sample may be the image `[C, H, W]`, a clip `[C, T, H, W]`, or a
                tuple or dict that holds one. Whole numbers, such as uint8, go to the network as they are. If the data
                set's transform normalises, `Probe.pictures` undoes that.
            indices: which samples to take, as whole numbers; negative ones count from the end.

        Raises:
            TypeError: the data set cannot be indexed, or `indices` are not whole numbers.
            ValueError: there is no such index, no image in a sample, or the images have different sizes; or the data
                set holds a queue, a pipe, an executor or a thread, and its image would be missing in the training.

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
        names = [f"{kind}[{index}]" for index in indices]
        noted = Noted([dataset])
        if noted.shared:
            raise ValueError(
                f"Taking an image of the {kind} would use up what its {noted.shared} gives to the training; pass a "
                "Probe made otherwise, e.g. Probe.from_images(...)."
            )
        try:
            with kept_rng(generators_in([dataset], depth=5)), noted.reading(here=True):
                tensors = [sample_image(_taken(dataset, i), name) for i, name in zip(indices, names, strict=True)]
                stacked = _stacked(tensors, names)
        finally:
            noted.tell(kind)
        mean, std = normalisation_of(stacked, [dataset])
        return cls(stacked, names=names, mean=mean, std=std)

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
        return cls(normalised(unit, mean, std), names=["chart"], mean=mean, std=std)


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


def probe_of_batch(tensor: torch.Tensor, *, name: str, made_by: Sequence[object]) -> Probe:
    """The probe of one image out of a batch, with its axis of images.

    Args:
        tensor: one image `[1, C, H, W]`, clip `[1, C, T, H, W]`, or `[1, A, B]`: a signal, or an image of one channel.
        name: of the image.
        made_by: the data set, the collate function: if one of them normalises, `Probe.pictures` undoes that.

    Raises:
        ValueError: the tensor cannot be a probe.
    """
    mean, std = normalisation_of(tensor, made_by)
    return Probe(tensor, names=[name], mean=mean, std=std)


def _checksum(tensor: torch.Tensor) -> int:
    values: Any = tensor.contiguous().numpy()
    return zlib.crc32(values)


def probe_as_kept(tensor: torch.Tensor, *, names: Sequence[str] | None) -> Probe:
    """The probe that a run has kept.

    Args:
        tensor: as `Probe.tensor` was.
        names: as `Probe.names` were; None for new ones.
    """
    return _with_three_axes(tensor, names=names) if tensor.dim() == 3 else Probe(tensor, names=names)


def _with_three_axes(tensor: torch.Tensor, *, names: Sequence[str] | None = None) -> Probe:
    """The probe of signals `[N, C, L]`, which are not taken for an image `[C, H, W]`."""
    probe = Probe.__new__(Probe)
    probe._three_axes = False
    probe._fill(checked(tensor), names, None, None)
    return probe


def _as_image(value: Any, source: str) -> torch.Tensor:
    """One image `[C, H, W]` out of what a transform or dataset gave; whole numbers stay what they are."""
    if isinstance(value, Image.Image):
        return unit_range(_rgb(value, source))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, torch.Tensor):
        refuse_without_values(value)
        if value.dim() == 4 and len(value) == 1:
            value = value[0]
        if value.dim() == 3:
            image: torch.Tensor = value.detach().cpu()
            return image.float() if image.is_floating_point() else image
        what = f"{value.dtype} {list(value.shape)}"
    else:
        what = type(value).__name__
    raise ValueError(f"{source} should be an image [C, H, W], but it is {what}; pass a Probe.")


def _rgb(image: Image.Image, source: str) -> Image.Image:
    try:
        return rgb(image)
    except ValueError as error:
        raise ValueError(f"{source} is an image that cannot be taken: {error}.") from error


def sample_image(sample: Any, name: str) -> torch.Tensor:
    """The image `[C, H, W]` in a sample of a data set, or else its clip `[C, T, H, W]`.

    Args:
        sample: as the data set has it: an image, or sequences and mappings that hold one.
        name: of the sample, for messages.

    Raises:
        ValueError: the sample holds no image.
    """
    image = raw_image(sample)
    if isinstance(image, torch.Tensor) and image.dim() == 4:
        clip: torch.Tensor = image.detach().cpu()
        return clip.float() if clip.is_floating_point() else clip
    if image is not None:
        return _as_image(image, f"The image of {name}")
    parts = list(sample.values()) if isinstance(sample, Mapping) else sample
    parts = list(parts) if isinstance(parts, (tuple, list)) else [parts]
    found = ", ".join(type(value).__name__ for value in parts) or type(sample).__name__
    raise ValueError(f"No image [C, H, W] was found in {name}, which holds {found}; pass a Probe.")


def _stacked(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        each = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
        raise ValueError(f"The images of a probe have one size, but these have several: {each}; give size=.")
    if not tensors:
        raise ValueError("A probe needs at least one image: the sequence of indices is empty.")
    return torch.stack(list(tensors))
