"""What the commands and the public objects make of the runs of `output_runs`; all below the current folder.

Folders: `demo`, `replays`, `compare`, `export`, `show`, `said` (what commands print), `python` (what the public objects
give), and `given` (weights and an image for the commands to work on).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torchvision
from output_runs import batches, plain_runs, resumed_runs, seeded, start_killed, styled_runs, watched_loops
from PIL import Image

import cnnlog
from cnnlog import FeatureMapMonitor, FilterMonitor, Probe, compare, open_run, watch

ARCH = "squeezenet1_1"
MEASURES = (
    *("function_change", "weight_change", "filter_angle", "update_ratio", "mean_update_ratio", "cka_positions"),
    *("dead_share", "norm", "active", "mean", "max"),
)


# --- the command -----------------------------------------------------------------------------------------------------


def command(name: str, *arguments: object) -> None:
    """Type a command; what it says, and its exit code, becomes `said/<name>.txt`."""
    from cnnlog.cli import main

    out, before = io.StringIO(), sys.argv
    sys.argv = ["cnnlog", *(str(argument) for argument in arguments)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    path = Path("said", f"{name}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{out.getvalue()}\nexit code: {code}\n", encoding="utf-8")


def demo() -> None:
    """The demo's three runs, in their quick form."""
    command("demo", "demo", "--quick", "--out", "demo")
    path = Path("said/demo.txt")
    # without bars, and the path of this Python
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [" ".join(line) for line in lines if "--logdir" not in line and "━" not in "".join(line)]
    path.write_text("\n".join(kept), encoding="utf-8")


def given_files() -> None:
    """Weights of a torchvision network, and images."""
    folder = Path("given")
    for name, seed in (("weights_a", 0), ("weights_b", 1)):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(ARCH, num_classes=10)
        safetensors.torch.save_file(model.state_dict(), folder / f"{name}.safetensors")
        (folder / "trained").mkdir(exist_ok=True)
        torch.save(
            {"state_dict": model.state_dict(), "epoch": seed, "global_step": 3 * seed + 3},
            folder / "trained" / f"epoch={seed}.ckpt",
        )
    pixels = np.random.default_rng(7).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((144, 120), Image.Resampling.BICUBIC).save(folder / "image.png")


def replays() -> None:
    """Checkpoints of our own class, and of a torchvision network."""
    ours = ("given/plain", "--module", "output_runs:Tiny")
    command("replay", "replay", *ours, "--probe-of", "runs/plain", "-o", "replays/plain")
    options = ("--chart", "--size", 32, "--unit", "step", "--layers", "colours,mix", "--max", 4, "--no-tensorboard")
    command("replay_steps", "replay", *ours, *options, "--view", "mean", "-o", "replays/steps")
    command("replay_filters", "replay", *ours, "--baseline", "given/other/epoch=0.ckpt", "-o", "replays/filters")
    theirs = ("given/trained", "--arch", ARCH, "--chart", "--size", 48, "--mean", "0.5,0.5,0.5", "--std", "1,1,1")
    command("replay_arch", "replay", *theirs, "-o", "replays/arch")


def comparisons() -> None:
    """One run, two, three sides, pinned steps, weights; as text, page, JSON, CSV and TensorBoard run."""
    sides = {
        "one": ("runs/plain",),
        "two": ("runs/plain", "runs/other"),
        "three": ("runs/other", "runs/files", "given/plain/epoch=3.ckpt"),
        "pinned": ("runs/plain@baseline", "runs/plain@last", "runs/other@2"),
        "images": ("runs/images", "runs/steps"),
        "resumed": ("runs/killed/v0", "runs/killed/carried"),
        "broken": ("runs/loop", "runs/loop_broken"),
        "weights": ("given/weights_a.safetensors", "given/weights_b.safetensors", "--arch", ARCH),
        "of_probe": ("replays/arch", "given/weights_a.safetensors", "--arch", ARCH),
        "maps": ("replays/arch", "given/weights_b.safetensors", "--arch", ARCH, "--image", "given/image.png"),
    }
    Path("compare").mkdir()
    for name, given in sides.items():
        to = f"compare/{name}"
        files = ("-o", f"{to}.html", "--json", f"{to}.json", "--csv", f"{to}.csv", "--tensorboard", to)
        command(f"compare_{name}", "compare", *given, *files)
    command("compare_again", "compare", "runs/plain", "--csv", "compare/one.csv")


def exports() -> None:
    """Every form of both kinds, and what the options change."""
    forms = ("--strip", "--sheet", "--gif", "--apng", "--figure")
    for run in ("plain", "images", "loop_broken", "loop_filters"):
        for kind in ("filters", "feature_maps"):
            folder = Path("export", run, kind)
            folder.mkdir(parents=True)
            command(f"export_{run}_{kind}", "export", f"runs/{run}", *forms, "--kind", kind, "-o", folder)
    to = Path("export")
    for suffix in ("pdf", "svg"):
        for kind in ("filters", "feature_maps"):
            figure = ("--figure", "--kind", kind, "--layer", "second.0", "--step", 2)
            command(f"export_{kind}_{suffix}", "export", "runs/plain", *figure, "-o", to / f"{kind}.{suffix}")
    few = ("--strip", "--layer", "second.0", "--steps", "0,2", "--channels", "4,1", "--cmap", "magma", "--width", 200)
    command("export_few", "export", "runs/plain", *few, "-o", to / "few.png")
    one = ("--gif", "--kind", "feature_maps", "--layer", "mix", "--steps", "0,2", "--image", 2)
    command("export_one", "export", "runs/images", *one, "-o", to / "one.gif")
    command("export_sheet", "export", "demo/2_finetuned", "--sheet", "--step", 1, "-o", to / "sheet.png")
    command("export_again", "export", "demo/2_finetuned", "--sheet", "-o", to / "sheet.png")


def shown() -> None:
    """`layers` and `show`, with a file of weights."""
    file, to = "given/weights_a.safetensors", Path("show")
    to.mkdir()
    weights = (ARCH, "--weights", "given/weights_b.safetensors")
    command("layers", "layers", file, "--arch", ARCH, "--size", 64)
    for figure in ((), ("--figure",)):
        end = "figure" if figure else "grid"
        first = ("--arch", ARCH, "--layer", "features.0", "-o", to / f"rgb_{end}.png")
        command(f"show_filters_{end}", "show", "filters", file, *first, *figure)
        slices = ("--layer", "features.3.expand3x3", "--max", 9, "--cmap", "auto", "--range", "layer")
        command(f"show_slices_{end}", "show", "filters", *weights, *slices, "-o", to / f"slices_{end}.png", *figure)
        maps = ("--image", "given/image.png", "--layer", "features.0", "--max", 12, "-o", to / f"maps_{end}.png")
        command(f"show_maps_{end}", "show", "maps", file, "--arch", ARCH, *maps, *figure)
    mean = ("--layer", "features.3.squeeze", "--view", "mean", "--figure")
    command("show_svg", "show", "filters", *weights, *mean, "-o", to / "mean.svg")


def helps_and_refusals() -> None:
    """What a person reads who asks for help, or for what cannot be."""
    commands = ("layers", "show filters", "show maps", "compare", "tensorboard", "export", "replay", "demo")
    for name in ("", "show", *commands):
        command(f"help/{name.replace(' ', '_') or 'cnnlog'}", *name.split(), "--help")
    refused: dict[str, tuple[object, ...]] = {
        "no_run": ("export", "runs/nothing", "--gif"),
        "several_runs": ("export", "runs", "--gif"),
        "layer": ("export", "runs/plain", "--gif", "--layer", "colors"),
        "step": ("compare", "runs/plain@9", "runs/other"),
        "steps": ("export", "runs/plain", "--strip", "--steps", "0,x"),
        "channel": ("export", "runs/plain", "--strip", "--channels", "99"),
        "suffix": ("export", "runs/plain", "--gif", "-o", "export/a.png"),
        "arch": ("layers", "squeezenet1_2"),
        "show_layer": ("show", "filters", ARCH, "--weights", "none", "--layer", "features.1", "-o", "a.png"),
        "show_suffix": ("show", "filters", ARCH, "--weights", "none", "--layer", "features.0", "-o", "a.pdf"),
        "cmap": ("show", "filters", ARCH, "--weights", "none", "--layer", "classifier.1", "-o", "a.png", "--cmap", "n"),
        "replay": ("replay", "given/plain", "--arch", ARCH, "--module", "output_runs:Tiny"),
        "replay_class": ("replay", "given/plain", "--module", "output_runs:Tniy"),
        "nothing_shared": ("compare", "runs/plain", "replays/arch"),
        "alone": ("compare", "given/weights_a.safetensors"),
    }
    for name, arguments in refused.items():
        command(f"refused/{name}", *arguments)


# --- from Python -----------------------------------------------------------------------------------------------------


def from_python() -> None:
    """What the public objects give: signatures, a run's tables, arrays and figures, a comparison's texts."""
    folder = Path("python")
    folder.mkdir(exist_ok=True)
    (folder / "signatures.txt").write_text("\n".join(_signatures()) + "\n")
    for path in ("runs/plain", "runs/images", "runs/files", "runs/killed/v0", "runs/loop_broken", "demo/2_finetuned"):
        _read_run(path, folder / path.replace("/", "-"))
    for sides in (("runs/plain",), ("runs/plain", "runs/other"), ("runs/plain", "given/other/epoch=2.ckpt")):
        made = compare(*sides)
        name = folder / f"compare-{'-'.join(Path(side).stem for side in sides)}"
        name.with_suffix(".json").write_text(json.dumps(made.to_dict()))
        name.with_suffix(".csv").write_text(made.to_csv())
        texts = (made.to_text(), made.verdict(), repr(made), made._repr_html_(), repr(made.curves()))
        name.with_suffix(".txt").write_text("\n---\n".join(texts))
        made.figure("second.0").savefig(name.with_suffix(".png"))
    probes = (
        Probe.chart(64),
        Probe.from_images("given/image.png", size=32),
        Probe.from_dataset(batches().dataset, (0, 5)),
    )
    pictures = {str(i): torch.from_numpy(np.stack(made.pictures).copy()) for i, made in enumerate(probes)}
    safetensors.torch.save_file(pictures, folder / "probes.safetensors")
    (folder / "probes.txt").write_text("\n".join(f"{made!r} {made.fingerprint} {made.names}" for made in probes))


def _read_run(path: str, to: Path) -> None:
    run: Any = open_run(path)
    to.mkdir()
    for measure in MEASURES:
        for layer in (None, run.layers[0]):
            try:
                table = run.over_steps(measure, layer).to_csv(index=False)
            except ValueError as error:
                table = str(error)
            (to / f"steps-{measure}-{layer}.csv").write_text(table)
    arrays: dict[str, torch.Tensor] = {}
    for layer in run.layers:
        for measure in MEASURES:
            with contextlib.suppress(ValueError):
                arrays[f"numbers/{measure}/{layer}"] = torch.from_numpy(run.numbers(measure, layer))
        for which in ("baseline", "last"):
            for kind, read in (("filters", run.filters), ("maps", run.feature_maps)):
                with contextlib.suppress(ValueError):
                    arrays[f"{kind}/{which}/{layer}"] = torch.from_numpy(read(layer, which))
    arrays = {name: array.clone().contiguous() for name, array in arrays.items()}
    safetensors.torch.save_file(arrays, to / "arrays.safetensors")
    (to / "about.txt").write_text(f"{run!r}\n{run._repr_html_()}\n{run.steps}\n{run.layers}\n{run.skipped}\n")
    run.figure(run.layers[0]).savefig(to / "filters.png")
    run.figure(run.layers[-1], kind="feature_maps", cmap="magma").savefig(to / "maps.png")


def _signatures() -> Iterator[str]:
    """The public names, and the arguments they take."""
    yield ", ".join(dir(cnnlog))
    functions: list[Callable[..., Any]] = [FilterMonitor, FeatureMapMonitor, watch, open_run, compare, Probe]
    functions += [Probe.from_images, Probe.from_tensor, Probe.from_dataset, Probe.chart]
    for public in functions:
        for name, parameter in inspect.signature(public).parameters.items():
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            yield f"{public.__qualname__}: {parameter.kind.description} {name}{default}"


# --- all of it -------------------------------------------------------------------------------------------------------


def make_all() -> None:
    """Make everything in the current folder, which must be empty."""
    with seeded() as said:
        Path("given").mkdir()
        killed = start_killed()
        given_files()
        for part in (plain_runs, styled_runs, watched_loops, demo):
            _timed(part)
        _timed(lambda: resumed_runs(killed), "resumed_runs")
        for part in (replays, comparisons, exports, shown, helps_and_refusals, from_python):
            _timed(part)
    ours = sorted({str(warning.message) for warning in said if str(warning.message).startswith("cnnlog")})
    Path("said/warnings.txt").write_text("\n".join(ours) + "\n", encoding="utf-8")


def _timed(part: Callable[[], None], name: str = "") -> None:
    begun = time.monotonic()
    part()
    print(f"{time.monotonic() - begun:5.1f} s  {name or part.__name__}", file=sys.stderr)
