"""What a run's picture files and event files hold, by tag and step, to be compared with what a tracker has."""

from __future__ import annotations

import csv
from pathlib import Path

from support.tracked import pixels
from support.training import events


def picture_files(folder: Path) -> dict[str, dict[str, str]]:
    """Tag -> step -> digest, of the files beside a store."""
    found: dict[str, dict[str, str]] = {}
    for path in folder.rglob("*.png"):
        tag = path.parent.relative_to(folder).as_posix()
        found.setdefault(tag, {})[str(int(path.stem.removeprefix("step-")))] = pixels(path.read_bytes())
    return found


def number_files(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "numbers").iterdir()):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["tag"], {})[row["step"]] = float(row["value"])
    return found


def of_event_files(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, float]]]:
    """Tag -> step -> digest, and tag -> step -> number, of a folder's event files."""
    found = events(folder)
    images = {
        tag: {str(image.step): pixels(image.encoded_image_string) for image in found.Images(tag)}
        for tag in found.Tags()["images"]
    }
    numbers = {
        tag: {str(number.step): number.value for number in found.Scalars(tag)} for tag in found.Tags()["scalars"]
    }
    return images, numbers
