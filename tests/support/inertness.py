"""Trains a net twice and compares everything, byte for byte. Used by the tests and by `scripts/zoo.py`."""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Trained(L.LightningModule):
    """Trains any net towards noise: what it returns needs only to hold a tensor first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.losses: list[str] = []

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        output = self(batch[0])
        while not isinstance(output, torch.Tensor):
            output = next(iter(output.values() if isinstance(output, dict) else output))
        loss = (output.float() - torch.rand_like(output)).square().mean()
        self.losses.append(float(loss.item()).hex())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-1, momentum=0.9, weight_decay=1e-3)


class Detects(Trained):
    """Trains a detector of torchvision's, on one box an image."""

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        height, width = batch[0].shape[-2:]
        box = torch.tensor([[0.1 * width, 0.1 * height, 0.6 * width, 0.8 * height]])
        target: dict[str, torch.Tensor] = {"boxes": box, "labels": torch.tensor([1])}
        target |= {"masks": torch.ones(1, height, width, dtype=torch.uint8), "keypoints": _keypoints(box)}
        loss = torch.stack(list(self.net(list(batch[0]), [target for _ in batch[0]]).values())).sum()
        self.losses.append(float(loss.item()).hex())
        return loss


def _keypoints(box: torch.Tensor) -> torch.Tensor:
    """The 17 that torchvision's model knows, `[1, 17, 3]`, all visible and in the middle of the box."""
    middle = torch.tensor([*((box[0, :2] + box[0, 2:]) / 2).tolist(), 1.0])
    return middle.repeat(1, 17, 1)


Make = Callable[[], Sequence[L.Callback]]


def trace(
    build: Callable[[], nn.Module],
    image: tuple[int, ...],
    make_callbacks: Make,
    folder: Path,
    *,
    epochs: int = 2,
    images: int = 4,
    fitted: Callable[[Trained], Any] = lambda module: module,
    **options: Any,
) -> dict[str, str]:
    """Everything that a training leaves behind, as name -> digest, after `epochs` of batches of four images.

    `fitted` makes of the module what the trainer is to fit (a compiled one, say); `options` are the trainer's.
    """
    _seed()
    net = build()
    module = net if isinstance(net, Trained) else Trained(net)
    data = TensorDataset(torch.rand(images, *image))
    _seed()
    plainly: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": epochs,
        "gradient_clip_val": 1e-3,  # a deep net that begins with norms over few pixels explodes otherwise
        "gradient_clip_algorithm": "value",
        "default_root_dir": folder,
    }
    with _quiet():
        trainer = L.Trainer(callbacks=list(make_callbacks()), **{**plainly, **options})
        # shuffled from the global generator: a draw too many changes the batches that follow
        trainer.fit(fitted(module), DataLoader(data, batch_size=4, shuffle=True))
    return dict(_facts(module, trainer.optimizers, trainer.callback_metrics))


class Watches(Protocol):
    """Something that looks at a model between the epochs of a loop."""

    def snapshot(self, step: int) -> None: ...

    def close(self) -> None: ...


def loop_trace(
    build: Callable[[], nn.Module],
    image: tuple[int, ...],
    watch: Callable[[nn.Module], Watches] | None,
    *,
    epochs: int = 3,
) -> dict[str, str]:
    """The same as `trace` of a loop without Lightning; `watch` is given the net alone."""
    _seed()
    module = Trained(build())
    images = TensorDataset(torch.rand(4, *image))
    optimiser = module.configure_optimizers()
    _seed()
    loader = DataLoader(images, batch_size=4, shuffle=True)
    watcher = watch(module.net) if watch else None
    for epoch in range(epochs):
        if watcher:
            watcher.snapshot(epoch)
        for index, batch in enumerate(loader):
            optimiser.zero_grad()
            module.training_step(batch, index).backward()
            nn.utils.clip_grad_value_(module.parameters(), 1e-3)
            optimiser.step()
    if watcher:
        watcher.snapshot(epochs)
        watcher.close()
    return dict(_facts(module, [optimiser], {}))


def differences(plain: dict[str, str], watched: dict[str, str]) -> list[str]:
    """What differs, by name; empty if the training was not disturbed at all."""
    return sorted(key for key in plain.keys() | watched.keys() if plain.get(key) != watched.get(key))


def _seed() -> None:
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 - the global generator is under test
    torch.manual_seed(7)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on workers, batch counts and frozen layers; our own warnings stay errors in tests."""
    with warnings.catch_warnings():
        for advice in ("does not have many workers", "number of training batches", "in eval mode at the start"):
            warnings.filterwarnings("ignore", message=f".*{advice}")
        # Lightning 2.6 with torch 2.15
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec", category=FutureWarning)
        yield


def _facts(
    module: Trained, optimisers: Sequence[torch.optim.Optimizer], metrics: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str]]:
    for step, loss in enumerate(module.losses):
        yield f"loss {step}", loss
    for name, tensor in module.state_dict().items():
        yield f"state {name}", _digest(tensor)
    for name, parameter in module.named_parameters():
        yield f"parameter {name}", f"{parameter.requires_grad} {_digest(parameter.grad)}"
    for position, optimiser in enumerate(optimisers):
        for index, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                yield f"optimiser {position}.{index}.{key}", _digest(value)
    for name, metric in metrics.items():
        yield f"metric {name}", _digest(metric)
    yield "torch generator", _digest(torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield "cuda generators", str([_digest(state) for state in torch.cuda.get_rng_state_all()])
    yield "python generator", repr(hash(random.getstate()))
    yield "numpy generator", repr(np.random.get_state())  # noqa: NPY002
    for name, part in module.named_modules():
        yield f"flag {name}", str(part.training)
        yield f"class {name}", type(part).__qualname__
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        yield f"hooks {name}", str([len(kind) for kind in hooks])
        yield from _attributes(name, part)


def _attributes(name: str, part: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(part, L.LightningModule):
        yield f"attributes {name}", str(sorted(part.__dict__))
        return
    for key, value in part.__dict__.items():
        if isinstance(value, torch.Tensor):
            yield f"attribute {name}.{key}", _digest(value)
        elif isinstance(value, torch.Generator):
            yield f"attribute {name}.{key}", _digest(value.get_state())
        elif not key.startswith("_"):
            yield f"attribute {name}.{key}", _without_address(value)


def _without_address(value: object) -> str:
    if isinstance(value, (int, float, str, bool, list, tuple, set, np.ndarray)) or type(value) is dict:
        return repr(value) if "0x" not in repr(value) else str(type(value))
    return str(type(value))


def _digest(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    tensor = value.detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    crc = zlib.crc32(raw.numpy().data)  # ten times as fast as SHA-256
    return f"{tensor.dtype} {tuple(tensor.shape)} {value.stride()} {value.device.type} {crc:08x}"
