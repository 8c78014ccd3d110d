"""Trains models with and without the monitors and compares everything, byte for byte.

    scripts/zoo [--family NAME] [--only GLOB]

A family is one of torchvision's (classification, segmentation, detection, video), or a library that you have installed
(transformers, timm, segmentation_models_pytorch, ultralytics, monai). Nothing is downloaded. It takes minutes.
The exit status is 1 if any model is disturbed.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from environment import advice

try:
    import torch
    import torchvision
    from zoo_libraries import LIBRARIES, networks

    from cnnlog import FeatureMapMonitor, FilterMonitor, Probe
except ModuleNotFoundError as error:
    raise advice("scripts/zoo", error) from error

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.inertness import Detects, Trained, differences, trace

from cnnlog.capture.capture import survey
from cnnlog.capture.layers import select
from cnnlog.kinds import Kind

Size = tuple[int, ...]

FAMILIES = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "detection": torchvision.models.detection,
    "video": torchvision.models.video,
}
# the first at which a model runs in training mode is taken
IMAGES: list[Size] = [(3, size, size) for size in (32, 64, 75, 96, 128, 224, 256, 299)]
CLIPS: list[Size] = [(3, 4, 32, 32), (3, 8, 64, 64), (3, 16, 224, 224)]
OTHER_INPUTS: dict[str, list[Size]] = {"video": CLIPS, "detection": [(3, 64, 64)]}


@dataclass(frozen=True)
class Result:
    """What came of training one model twice.

    Attributes:
        name: the family's name of the model.
        image: the input's shape without the batch, `[C, H, W]` or `[C, T, H, W]`.
        layers: how many were watched.
        verdict: "yes", or what differs.
        seconds: what it took.
    """

    name: str
    image: Size
    layers: int
    verdict: str
    seconds: float

    @property
    def inert(self) -> bool:
        """Whether nothing differs."""
        return self.verdict == "yes"


def build(family: str, name: str, size: int) -> Trained:
    """The model with random weights, as a module that Lightning trains; `size` is its input's, where it must know."""
    options: dict[str, object] = {"num_classes": 5}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": True}
    elif name.startswith("vit_"):
        options |= {"image_size": size}
    if family in ("segmentation", "detection"):
        options |= {"weights_backbone": None}
    if family == "detection" and not name.startswith("ssd"):
        options |= {"min_size": 64, "max_size": 64}  # else every image is scaled to 800 pixels
    model = torchvision.models.get_model(name, weights=None, **options)
    return Detects(model) if family == "detection" else Trained(model)


def smallest(family: str, name: str) -> tuple[Trained, Size]:
    """A model with random weights, and the smallest input on which it trains."""
    reason: Exception | None = None
    if name.startswith("vit_"):
        size = 28 if name.endswith("14") else 32
        return build(family, name, size), (3, size, size)
    if family in LIBRARIES:
        make, image = networks(family)[name]
        return Trained(make()), image
    model = build(family, name, IMAGES[0][-1])
    inputs = OTHER_INPUTS.get(family, IMAGES)
    for image in inputs:
        try:
            with torch.no_grad():
                model.training_step([torch.rand(4, *image)], 0)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = error
        else:
            model.losses.clear()
            return model, image
    raise RuntimeError(f"{name} runs on none of {inputs}") from reason


def check(family: str, name: str) -> Result:
    """Train one model with the monitors and without them, and compare what is left of both."""
    begin = time.perf_counter()
    torch.manual_seed(0)
    model, image = smallest(family, name)
    probe = Probe.from_tensor(torch.rand(1, *image, generator=torch.Generator().manual_seed(8)))
    layers = len(select(survey(model, probe), "auto", kind=Kind.FILTERS))
    with tempfile.TemporaryDirectory() as folder:
        plain = trace(lambda: copy.deepcopy(model), image, list, Path(folder), epochs=1)
        monitors = lambda: [FilterMonitor(), FeatureMapMonitor(probe)]  # noqa: E731
        watched = trace(lambda: model, image, monitors, Path(folder), epochs=1)
    found = differences(plain, watched)
    verdict = "yes" if not found else f"NO: {len(found)} differ, e.g. {found[0]}"
    return Result(name, image, layers, verdict, time.perf_counter() - begin)


def main() -> int:
    """Check the models that the options ask for; 0 if all of them trained undisturbed."""
    parser = argparse.ArgumentParser(
        prog="scripts/zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="classification", choices=[*FAMILIES, *LIBRARIES])
    parser.add_argument("--only", default="*", metavar="GLOB", help="models to try, e.g. 'resnet*'")
    family, wanted = parser.parse_args().family, parser.parse_args().only
    try:
        known = [*networks(family)] if family in LIBRARIES else torchvision.models.list_models(module=FAMILIES[family])
    except ModuleNotFoundError as error:
        parser.error(f"{error}: install {family} beside cnnlog, without changing torch")
    names = [name for name in known if fnmatchcase(name, wanted)]
    if not names:
        parser.error(f"there is no {family} model that matches {wanted!r}")
    # Else the backward pass of an index (MViT's and Swin's relative positions) adds up in the order of the threads, and
    # two trainings that nobody watches differ.
    torch.use_deterministic_algorithms(True, warn_only=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = []
    for number, name in enumerate(names, 1):
        print(f"\r\033[K[{number}/{len(names)}] {name} ...", end="", file=sys.stderr, flush=True)
        try:
            results.append(check(family, name))
        except Exception as error:  # one model that cannot be built does not end the rest
            results.append(Result(name, (), 0, f"NO: {type(error).__name__}: {error}", 0.0))
        if number == 1:
            print(f"\r\033[K{'model':<38} {'input':>10} {'layers':>6} {'seconds':>7}  inert")
        last = results[-1]
        size = "x".join(map(str, last.image[1:]))
        print(f"\r\033[K{last.name:<38} {size:>10} {last.layers:>6} {last.seconds:>7.1f}  {last.verdict}", flush=True)
    inert = sum(result.inert for result in results)
    print(f"{inert} of {len(results)} models trained bit-identically with the monitors.")
    return 0 if inert == len(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
