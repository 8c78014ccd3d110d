from __future__ import annotations

import importlib.util
import re
import urllib.error
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from support.places import EXAMPLES

from cnnlog.runs.store import RunStore

SCRIPT = EXAMPLES / "finetune.py"


@pytest.fixture(scope="module")
def finetune() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Red and blue images on noise, 9 to train with and 4 to validate with."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 9), ("val", 4)):
        for index in range(count):
            klass = ("red", "blue")[index % 2]
            pixels = rng.integers(0, 80, (72, 80, 3), dtype=np.uint8)
            pixels[..., 0 if klass == "red" else 2] += 150
            path = tmp_path / "data" / part / klass / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def quick(data: Path, *more: str) -> list[str]:
    given = ["--data", str(data), "--weights", "none", "--out", str(data.parent / "runs"), "--accelerator", "cpu"]
    return [*given, "--epochs", "1", "--batch-size", "4", "--size", "64", "--workers", "0", *more]


def test_every_epoch_is_watched_and_its_accuracy_printed(
    finetune: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = data / "val" / "red" / "0.png"
    module = finetune.main(quick(data, "--epochs", "2", "--probe", str(probe)))
    out = capsys.readouterr().out
    assert "squeezenet1_1 (none), 9 images of blue, red; 4 to validate" in out.splitlines()
    epochs = re.findall("epoch .* right", out)  # on a line with the progress bar, in some versions of Lightning
    assert epochs == [f"epoch {n}: {a:.1%} of the validation images right" for n, a in enumerate(module.accuracies, 1)]
    assert len(epochs) == 2
    store = RunStore.open(str(data.parent / "runs" / "squeezenet1_1-none" / "version_0" / "cnnlog"))
    assert store.steps == [0, 1, 2]
    assert store.read_probe().shape == (1, 3, 64, 64)
    assert "model.features.0" in store.read_record(2).filters
    assert module.model.classifier[1].out_channels == 2


def test_a_frozen_backbone_stays_as_it_is_and_the_head_learns(finetune: ModuleType, data: Path) -> None:
    module = finetune.main(quick(data, "--arch", "resnet18", "--freeze-backbone", "--lr", "0.01"))
    torch.manual_seed(0)
    start = RunStore.open(str(data.parent / "runs" / "resnet18-none" / "version_0" / "cnnlog"))
    record = start.read_record(1)
    change = {name: value[0] for name, value in record.numbers["weight_change"].items()}
    assert change.pop("model.fc") > 0
    assert set(change.values()) == {0.0}
    norm = module.model.bn1
    assert norm.num_batches_tracked == 0
    assert (norm.running_mean == 0).all()
    assert [name for name, p in module.model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


@pytest.mark.filterwarnings("ignore:The epoch parameter in .scheduler.step")  # SequentialLR's own, in older torch
def test_with_warmup_the_rate_rises_then_falls(
    finetune: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        finetune.Classifier,
        "on_train_epoch_start",
        lambda self: rates.append(self.optimizers().param_groups[0]["lr"]),
    )
    finetune.main(quick(data, "--arch", "resnet18", "--lr", "3e-5", "--epochs", "4", "--warmup", "2"))
    assert rates == pytest.approx([1e-5, 2e-5, 3e-5, 1.5e-5])


def test_auxiliary_classifiers_are_trained_too(finetune: ModuleType) -> None:
    model = finetune.load_classifier("googlenet").model
    head = finetune.replace_head(model, 2)
    module = finetune.Classifier(model, head, lr=1e-3, freeze_backbone=False)
    module.log = lambda *_, **__: None
    module.training_step([torch.rand(2, 3, 64, 64), torch.tensor([0, 1])], 0).backward()
    assert all(model.get_submodule(name).weight.grad.abs().sum() > 0 for name in head)


def test_what_is_missing_is_said_in_one_sentence(
    finetune: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    (data / "val" / "red").rename(data / "val" / "green")
    for arguments, message in (
        (quick(tmp_path / "nothing"), "finetune: expected the folder .*nothing/train, with one folder"),
        (quick(data), "expected the same classes .* has blue, red and .* has blue, green"),
        (quick(data, "--arch", "resnet8"), "no classifier 'resnet8'; did you mean"),
        (
            quick(data, "--weights", "DEFAULT"),
            "could not be downloaded .*give a file of them .*or none for random ones",
        ),
        (quick(data, "--weights", str(tmp_path / "w.pt")), "Expected a file of weights at .*w.pt, but there is none"),
    ):
        with pytest.raises(SystemExit, match=message) as caught:
            finetune.main(arguments)
        assert "\n" not in str(caught.value)
    (data / "val" / "green").rename(data / "val" / "red")
    with pytest.raises(SystemExit, match=r"finetune: .*nothing\.jpg"):
        finetune.main(quick(data, "--probe", str(tmp_path / "nothing.jpg")))
