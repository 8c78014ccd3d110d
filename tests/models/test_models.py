from __future__ import annotations

import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from cnnlog.models.files import load_weights, read_state_dict, without_prefix
from cnnlog.models.torchvision import (
    _NoStorage,
    _outputs,
    architectures,
    default_transform,
    load_classifier,
    replace_head,
)


def small(classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(num_classes=classes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    safetensors.torch.save_file({k: v.half() for k, v in small().state_dict().items()}, path)
    return path


def test_half_precision_weights_are_loaded_into_a_full_precision_network(weights: Path) -> None:
    loaded = load_classifier("squeezenet1_1", weights)
    assert loaded.name == "squeezenet1_1"
    assert next(loaded.model.parameters()).dtype == torch.float32
    expected = small().state_dict()
    for name, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, expected[name].half().float(), rtol=0, atol=0)


def test_the_transform_is_that_of_the_architecture() -> None:
    inception: Any = default_transform("inception_v3")
    assert inception.crop_size == [299]
    squeezenet: Any = load_classifier("squeezenet1_1").transform
    assert squeezenet.mean == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "net._orig_mod."])
def test_a_common_prefix_is_stripped(tmp_path: Path, wrap: Callable[[object], object], prefix: str) -> None:
    expected = small().state_dict()
    state = {prefix + name: value for name, value in expected.items()}
    if prefix:
        state["loss.weight"] = torch.ones(3)
    torch.save(wrap(state), tmp_path / "last.ckpt")
    loaded = load_classifier("squeezenet1_1", tmp_path / "last.ckpt").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_file_tells_its_architecture_and_its_classes(tmp_path: Path) -> None:
    torch.save({f"model.{k}": v for k, v in small(2).state_dict().items()}, tmp_path / "mine.pt")
    loaded = load_classifier(str(tmp_path / "mine.pt"))
    assert loaded.name == "squeezenet1_1"
    assert load_classifier(str(tmp_path / "mine.pt"), arch="squeezenet1_1").name == "squeezenet1_1"
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt fits none of torchvision's classifiers .* --arch"):
        load_classifier(str(tmp_path / "other.pt"))


def test_old_names_of_densenet_files_are_known() -> None:
    wanted = ["features.denseblock1.denselayer1.norm1.weight", "features.conv0.weight"]
    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.zeros(1), "features.conv0.weight": torch.zeros(1)}
    assert list(without_prefix(old, dict.fromkeys(wanted))) == wanted


def test_a_misspelt_architecture_gets_close_names() -> None:
    with pytest.raises(ValueError, match=r"no classifier 'resnet8'; did you mean .*resnet18"):
        load_classifier("resnet8")
    assert load_classifier("SqueezeNet1_1").name == "squeezenet1_1"


def test_weights_of_another_architecture_are_refused_and_change_nothing(weights: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not fit AlexNet: of its 16 names 12 missing \(features.3.weight, .* un"
    ):
        load_classifier("alexnet", weights)
    model = small()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"expected features.0.weight of shape \[64, 3, 3, 3\], but got \[64, 3, 5, 5\]"
    ):
        load_weights(model, state, source="x.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (open, ("evil-was-run", "w"))


def test_no_pickled_object_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "extra": Evil()}, "evil.ckpt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(small(), "whole-model.pt")
    for name in ("evil.ckpt", "raw.pt", "whole-model.pt"):
        with pytest.raises(ValueError, match=rf"{name} is damaged, or holds other objects than tensors"):
            read_state_dict(name)
    assert not (tmp_path / "evil-was-run").exists()


@pytest.mark.parametrize(("name", "message"), [("w.pt", "PyTorch file"), ("w.safetensors", "safetensors file")])
@pytest.mark.parametrize("part", ["empty", "half", "foreign"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, message: str, part: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"w": torch.zeros(1000)}, path)
    else:
        safetensors.torch.save_file({"w": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "foreign": b"\x89PNG\r\n" * 50}[part])
    with pytest.raises(ValueError, match=rf"{name} is (truncated or no {message}|damaged)"):
        read_state_dict(path)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a file of weights at .*none.pt, but there is none"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"DEFAULT, none, or a file \(.pt, .* but got default"):
        load_classifier("alexnet", "default")
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other.pt holds no tensors by name"):
            read_state_dict(tmp_path / "other.pt")


def test_without_a_network_one_sentence_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(
        ConnectionError, match=r"squeezenet1_1 could not .*give a file of them .*none for random ones"
    ) as caught:
        load_classifier("squeezenet1_1", "DEFAULT")
    assert "\n" not in str(caught.value)


def built(name: str) -> nn.Module:
    with _NoStorage():
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", architectures())
def test_the_head_of_every_classifier_is_found(name: str) -> None:
    model = built(name)
    heads = replace_head(model, 7)
    assert [_outputs(model.get_submodule(head)) for head in heads] == [7] * len(heads)
    left = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _outputs(m) == 1000]
    assert not left


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_a_new_head_gives_a_score_for_each_class(name: str) -> None:
    model = load_classifier(name).model.eval()
    replace_head(model, 5)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_what_has_no_head_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no linear layer and no convolution"):
        replace_head(nn.Sequential(nn.ReLU()), 2)
    with pytest.raises(ValueError, match="Expected 1 class or more, but got 0"):
        replace_head(nn.Linear(1, 1), 0)
