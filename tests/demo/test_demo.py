from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnlog.demo.runs import DemoResult, DemoRun, free_folder, run_demo, summary, tensorboard_line
from cnnlog.demo.tasks import GRATING_CLASSES, WEAVE_CLASSES, IntArray, gratings, weaves
from cnnlog.runs.store import RunStore
from cnnlog.snapshot import FloatArray


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "runs", quick=True, progress=False, echo=lambda line: None)


@pytest.mark.parametrize(("task", "classes"), [(gratings, GRATING_CLASSES), (weaves, WEAVE_CLASSES)])
def test_a_task_draws_every_class_the_same_for_the_same_seed(
    task: Callable[..., tuple[FloatArray, IntArray]], classes: int
) -> None:
    images, labels = task(200, seed=1)
    assert images.shape == (200, 3, 40, 40)
    assert images.dtype == np.float32
    assert np.abs(images).max() <= 1.5
    assert set(labels) == set(range(classes))
    again, labels_again = task(200, seed=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert not np.array_equal(images, task(200, seed=2)[0])


def test_the_stripes_of_a_class_have_its_angle_and_colours() -> None:
    images, labels = gratings(600, seed=0)
    energy = np.abs(np.fft.fft2(images.mean(1))) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(40), np.fft.fftfreq(40), indexing="ij")
    for klass in range(8):
        mean = energy[labels == klass].mean(0)
        ring = (np.hypot(fx, fy) > 0.1) & (np.hypot(fx, fy) < 0.25)
        doubled = np.angle((mean * np.exp(2j * np.arctan2(fy, fx)))[ring].sum())  # angles mod 180 degrees
        off = np.degrees(np.angle(np.exp(1j * (doubled - 2 * klass * np.pi / 8)))) / 2
        assert abs(off) < 10, (klass, off)
    red_green = images[(labels >= 16) & (labels < 20)]
    grey = images[labels < 16]
    for stripes, sign in ((red_green, -1), (grey, 1)):
        assert np.sign(np.corrcoef(stripes[:, 0].ravel(), stripes[:, 1].ravel())[0, 1]) == sign
    red_spots = images[labels == 24].mean((0, 2, 3))
    assert red_spots[0] > 0.05 > -0.05 > red_spots[1:].max()


def test_three_runs_are_watched_from_the_baseline_on(quick: DemoResult) -> None:
    for run in (quick.pretrained, quick.finetuned, quick.scratch):
        store = RunStore.open(str(run.folder / "cnnlog"))
        assert store.steps == [0, 1, 2]
        assert store.manifest.architecture == "DemoNet"
        record = store.read_record(0)
        assert set(record.filters) == set(record.feature_maps) == {"conv1", "conv2"}
        assert len(run.accuracies) == 2
        assert set(run.changed) == {"conv1", "conv2"}
        assert all(change > 0 for change in run.changed.values())
        assert list(run.folder.glob("events.out.tfevents.*"))
    assert {run.folder.parent for run in (quick.pretrained, quick.finetuned, quick.scratch)} == {quick.folder}


def test_fine_tuning_begins_where_the_first_run_ended(quick: DemoResult) -> None:
    end = RunStore.open(str(quick.pretrained.folder / "cnnlog")).read_weights("latest")[0]
    start = RunStore.open(str(quick.finetuned.folder / "cnnlog")).read_weights("baseline")[0]
    scratch = RunStore.open(str(quick.scratch.folder / "cnnlog")).read_weights("baseline")[0]
    for layer in ("conv1", "conv2"):
        np.testing.assert_array_equal(start[layer], end[layer])
        assert not np.array_equal(start[layer], scratch[layer])


def test_a_second_demo_takes_a_new_folder_and_repeats_the_first(quick: DemoResult) -> None:
    before = random.getstate(), torch.random.get_rng_state()
    lines: list[str] = []
    again = run_demo(quick.folder, quick=True, progress=False, echo=lines.append)
    assert again.folder == quick.folder.with_name("runs-2")
    assert again.scratch.changed == quick.scratch.changed
    assert again.finetuned.accuracies == quick.finetuned.accuracies
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_only_a_folder_with_something_in_it_is_passed_over(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert free_folder(tmp_path / "empty") == tmp_path / "empty"
    (tmp_path / "file").touch()
    (tmp_path / "file-2").mkdir()
    (tmp_path / "file-2" / "x").touch()
    assert free_folder(tmp_path / "file") == tmp_path / "file-3"


def test_the_summary_says_where_how_far_and_how_to_look(tmp_path: Path) -> None:
    def run(name: str, accuracy: float, changed: float) -> DemoRun:
        return DemoRun(name, tmp_path / name, (0.1, accuracy), {"conv1": changed, "conv2": changed / 2})

    folder = tmp_path / "with space"
    text = summary(DemoResult(folder, run("one", 0.97, 0.8), run("two", 0.96, 0.04), run("three", 0.81, 0.44)))
    lines = text.splitlines()
    assert f"The runs are in {folder}:" in lines
    assert [line.split() for line in lines if line.startswith("  conv")] == [
        ["conv1", "4.0%", "44.0%"],
        ["conv2", "2.0%", "22.0%"],
    ]
    assert "  two     96% of unseen images right" in lines
    assert lines[-1].endswith(f"tensorboard --logdir '{folder}'")


def test_the_tensorboard_line_names_the_one_that_has_cnnlog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "tensorboard"):
        (binaries / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(binaries / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert tensorboard_line(Path("runs")) == ".venv/bin/tensorboard --logdir runs"
    monkeypatch.setenv("PATH", str(binaries))
    assert tensorboard_line(Path("runs")) == "tensorboard --logdir runs"
