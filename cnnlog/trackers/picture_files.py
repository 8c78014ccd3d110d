"""Picture files in the run's own folder, for trainings without a tracker that takes pictures."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import numpy.typing as npt

from cnnlog.runs.places import inside, locate
from cnnlog.runs.whole_files import write_bytes

FOLDER = "pictures"


class PictureFiles:
    """Writes `pictures/<tag>/step-00000003.png` below a run's folder, and `pictures/numbers/step-00000003.csv`.

    The numbers come last, so that a step which has them is complete. Histograms are left out.

    Args:
        folder: the run's own, `<log_dir>/cnnlog`; a path, or an address that fsspec knows.
    """

    def __init__(self, folder: str) -> None:
        self.name = "the folder of pictures"
        self._folder = f"{folder}/{FOLDER}"
        self._numbers: dict[str, float] = {}
        self._step = -1

    def add_image(self, tag: str, png: bytes, size: tuple[int, int], step: int, *, description: str) -> None:
        """Write a picture.

        Args:
            tag: the picture's name, such as `filters/00_conv1`.
            png: the picture, as the bytes of a PNG file.
            size: width and height in pixels; not needed here, because the bytes tell them.
            step: the step that it belongs to.
            description: a sentence on what the picture shows; left out, because a file has no place for it.
        """
        self._write(f"{inside(tag)}/step-{step:08d}.png", png)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number.

        Args:
            tag: the number's name, such as `drift/00_conv1`.
            value: the number.
            step: the step that it belongs to.
        """
        if step != self._step:  # what an earlier one left behind when it failed is let go
            self._step, self._numbers = step, {}
        self._numbers[tag] = value

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text.

        Args:
            tag: the text's name.
            markdown: the text.
            step: the step that it belongs to.
        """
        self._write(f"{inside(tag)}/step-{step:08d}.md", markdown.encode())

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Leave it out.

        Args:
            tag: not used.
            values: not used.
            step: not used.
        """

    def commit(self, step: int) -> None:
        """Write the numbers.

        Args:
            step: the step that is complete.
        """
        numbers, self._numbers = (self._numbers if step == self._step else {}), {}
        if numbers:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([("step", "tag", "value")])
            rows = ((step, tag.replace("\0", "\N{SYMBOL FOR NULL}"), value) for tag, value in numbers.items())
            csv.writer(text, lineterminator="\n").writerows(rows)  # in Python 3.10 it takes no NUL
            self._write(f"numbers/step-{step:08d}.csv", text.getvalue().encode())

    def last_step(self) -> int | None:
        """The last step that has numbers."""
        fs, path = locate(f"{self._folder}/numbers")
        names = fs.ls(path, detail=False) if fs.exists(path) else []
        found = (re.fullmatch(r"step-(\d{8,})\.csv", str(name).rsplit("/", 1)[-1]) for name in names)
        return max((int(match[1]) for match in found if match), default=-1)

    def _write(self, name: str, data: bytes) -> None:
        write_bytes(f"{self._folder}/{name}", data)  # a kill leaves the whole file or none
