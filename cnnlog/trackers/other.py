"""A handle of no tracker that is known here, but with a method for images by a common name."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

IMAGE_METHODS = ("log_image", "add_image", "report_image", "track_image", "log_images", "add_images")
NUMBER_METHODS = ("log_metric", "log_scalar", "add_scalar", "report_scalar")
TAG = ("key", "tag", "name", "title", "image_name")
STEP = ("step", "global_step", "iteration")
IMAGE = ("image", "img", "picture", "image_data", "img_tensor", "images", "imgs", "img_tensors")
NUMBER = ("value", "scalar", "scalar_value", "metric", "y")
CAPTION = ("caption", "description")

Call = Callable[[str, Any, int, str], None]  # tag, value, step, description


class OtherTracker:
    """Calls the handle's method for images, and its method for numbers.

    Of a logger, the methods may also be those of its `experiment`. Texts and histograms are left out, and numbers where
    no method for them is found.

    Args:
        name: what warnings call it: the class of the handle.
        image: logs a picture: it is called with the tag, the bytes of a PNG file, the step and a description.
        number: logs a number: it is called with the tag, the value, the step and an empty description.
    """

    def __init__(self, name: str, image: Call, number: Call) -> None:
        self.name = name
        self._image = image
        self._number = number

    @classmethod
    def of(cls, handle: Any) -> OtherTracker | None:
        """The tracker for a handle, `None` if no method is found that can be called with a tag and an image.

        Args:
            handle: any object; its `experiment`, if it has one, is looked at after it.
        """
        owners = (handle, getattr(handle, "experiment", None))
        image = next(_calls(owners, IMAGE_METHODS, IMAGE, _as_image), None)
        if image is None:
            return None
        by_name = next((found for owner in owners if callable(found := getattr(owner, "log_metrics", None))), None)

        def log_metrics(tag: str, value: Any, step: int, _: str) -> None:
            if by_name is not None:
                by_name({tag: value}, step)

        number = next(_calls(owners, NUMBER_METHODS, NUMBER, lambda value, *_: value), log_metrics)
        return cls(type(handle).__name__, image, number)

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Log a picture.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows; given on where the method takes a caption.
        """
        self._image(tag, png, step, description)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        self._number(tag, value, step, "")

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Leave it out.

        Args:
            tag: not used.
            markdown: not used.
            step: not used.
        """

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Leave it out.

        Args:
            tag: not used.
            values: not used.
            step: not used.
        """

    def commit(self, step: int) -> None:
        """Do nothing: nothing is known of how it sends.

        Args:
            step: not used.
        """

    def last_step(self) -> int | None:
        """Unknown."""
        return None


def _calls(
    owners: Sequence[Any], methods: tuple[str, ...], values: tuple[str, ...], convert: Callable[[Any, str, bool], Any]
) -> Iterator[Call]:
    """Ways to log a value: each method of the owners whose parameters are all understood.

    Args:
        owners: objects that may have such a method; None stands for one that is not there.
        methods: names of methods, the best first.
        values: names that the parameter of the value may have.
        convert: makes what the method takes, of the value, that parameter's name, and whether the method has a
            parameter `dataformats`.
    """
    for owner in owners:
        for name in methods:
            method = getattr(owner, name, None)
            call = _call(method, values, convert) if callable(method) else None
            if call is not None:
                yield call


def _call(method: Callable[..., Any], values: tuple[str, ...], convert: Callable[[Any, str, bool], Any]) -> Call | None:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return None
    tag_as, value_as, step_as, caption_as = (
        next((name for name in names if name in parameters), None) for names in (TAG, values, STEP, CAPTION)
    )
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    positional = any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters.values())
    if tag_as is None or value_as is None or positional or not required <= {tag_as, value_as, step_as}:
        return None
    has_formats = "dataformats" in parameters

    def call(tag: str, value: Any, step: int, description: str) -> None:
        arguments = {tag_as: tag, value_as: convert(value, value_as, has_formats)}
        if step_as is not None:
            arguments[step_as] = step
        else:
            arguments[tag_as] = f"{tag}/step-{step:08d}"  # so that a step does not replace the one before
        if has_formats:
            arguments["dataformats"] = "HWC"
        if caption_as is not None and isinstance(value, bytes):
            listed = isinstance(arguments[value_as], list)
            arguments[caption_as] = [description] if listed else description
        method(**arguments)

    return call


def _as_image(png: bytes, parameter: str, has_formats: bool) -> Any:
    """A PIL image, a list of one where several are expected, or an array where a tensor is.

    Arrays are `[H, W, 3]` uint8 if the method can be told so, else `[3, H, W]`, as TensorBoard has it.

    Args:
        png: the bytes of a PNG file.
        parameter: the name of the method's parameter for images.
        has_formats: whether the method has a parameter `dataformats`.
    """
    picture = Image.open(io.BytesIO(png))
    if "tensor" in parameter or has_formats:
        pixels = np.asarray(picture.convert("RGB"))
        return pixels if has_formats else pixels.transpose(2, 0, 1)
    return [picture] if parameter.endswith("s") else picture
