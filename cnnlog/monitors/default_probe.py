"""The probe that is taken where none is given: the first image that the network is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from cnnlog.capture.fed import Fed, fed_image, kinds_in
from cnnlog.capture.first_sample import Batches, NotRead, first_sample
from cnnlog.capture.loan import borrow
from cnnlog.capture.probe import Probe, probe_of_batch, sample_image
from cnnlog.messages import some

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def default_probe(trainer: L.Trainer, *, say: Callable[[str], object]) -> Probe:
    """The first image of the first collated sample of the validation loader, else of the one for training.

    It passes through the module's and the data module's hooks for batches, such as `on_after_batch_transfer`. The data
    set, the module and all random states are left as they were.

    Args:
        trainer: about to train.
        say: takes one sentence, if the image is not what the network is fed: no collate function could be used.

    Raises:
        ValueError: no loader gives an image. The message says why.
    """
    loaders = [*_loaders(trainer)]
    reasons: list[str] = []
    for collated in (True, False):
        for where, number, loader in loaders:
            use = partial(_image, trainer, where, number) if collated else _raw_image
            touched = [_data_module(trainer)] if collated and _hooked(trainer) else []
            try:
                fed = first_sample(loader, use, collated=collated, touched=touched, in_use=where == "training")
            except NotRead as error:
                reasons.append(f"that of the {where} loader fails ({error})")
                continue
            if fed is None:
                continue
            if not collated:
                say(
                    f"the probe is the first sample of the {where} data as it is, because no loader's first batch "
                    f"could be made: {reasons[0]}; pass a Probe if the network is fed something else"
                )
            return _probe(loader, fed)
        if not reasons:
            break
    if reasons:
        raise NotRead(f"No image could be read from the data loaders: {some(reasons)}; pass a Probe.")
    raise ValueError(_nothing(loaders))


# --- loaders


def _loaders(trainer: L.Trainer) -> Iterator[tuple[str, int, DataLoader[Any]]]:
    """All loaders, those for validation first: what each is for, its number there, and one of torch's for it."""
    for where, loaded in (("validation", trainer.val_dataloaders), ("training", trainer.train_dataloader)):
        for number, loader in enumerate(_flat(loaded)):
            known = _of_torch(loader)
            if known is not None:
                yield where, number, known


def _flat(loaded: Any) -> Iterator[Any]:
    if isinstance(loaded, CombinedLoader):
        yield from loaded.flattened
    elif isinstance(loaded, (Mapping, list, tuple)):
        for part in loaded.values() if isinstance(loaded, Mapping) else loaded:
            yield from _flat(part)
    elif loaded is not None:
        yield loaded


def _of_torch(loader: Any) -> DataLoader[Any] | None:
    """A loader of torch's that reads what a loader reads; None if that cannot be known."""
    if isinstance(loader, DataLoader):
        return loader
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and hasattr(dataset, "__getitem__"):
        return DataLoader(dataset)
    if isinstance(getattr(type(loader), "__iter__", None), FunctionType):  # its state can be given back
        return DataLoader(Batches(loader), batch_size=None, collate_fn=_unchanged)
    return None


def _unchanged(batch: Any) -> Any:
    return batch


# --- from a batch to the probe


def _image(trainer: L.Trainer, where: str, number: int, batch: Any) -> Fed | None:
    """The image in a batch as the training step gets it, on the CPU."""
    hooked = _hooked(trainer)
    if hooked:
        with ExitStack() as borrowed:
            borrowed.enter_context(borrow(trainer.lightning_module))
            borrowed.enter_context(_stage(trainer, where))
            before = hooked.get("on_before_batch_transfer")
            if before is not None:
                batch = before.on_before_batch_transfer(batch, number)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=number)
    return _kept(fed_image(batch))


def _raw_image(samples: Any) -> Fed | None:
    """The image in a sample as the data set has it."""
    sample = samples[0] if isinstance(samples, list) and len(samples) == 1 else samples
    try:
        image = sample_image(sample, "the first sample")
    except ValueError:
        return None
    return _kept(Fed(image, "", listed=True))


def _kept(fed: Fed | None) -> Fed | None:
    if fed is None:
        return None
    return Fed(fed.first().detach().to("cpu", copy=True).as_subclass(torch.Tensor), fed.key, listed=False)


def _hooked(trainer: L.Trainer) -> dict[str, Any]:
    """The hooks for batches that are the user's own -> whose they are."""
    owners = [owner for owner in (trainer.lightning_module, _data_module(trainer)) if owner is not None]
    return {hook: owner for hook in _HOOKS for owner in owners if is_overridden(hook, owner)}


def _data_module(trainer: L.Trainer) -> L.LightningDataModule | None:
    return getattr(trainer, "datamodule", None)


@contextmanager
def _stage(trainer: L.Trainer, where: str) -> Iterator[None]:
    """The stage that a batch of these loaders comes in: hooks ask for it before they augment."""
    before = trainer.state.stage
    if where == "validation":
        trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = before


def _probe(loader: DataLoader[Any], fed: Fed) -> Probe:
    source = loader.dataset.loader if isinstance(loader.dataset, Batches) else loader.dataset
    name = f"{type(source).__name__}[0] {fed.key}".strip()
    return probe_of_batch(fed.tensor, name=name, made_by=[loader.dataset, loader.collate_fn])


def _nothing(loaders: list[tuple[str, int, DataLoader[Any]]]) -> str:
    if not loaders:
        return "The data loaders have no data set to take the first image of as the probe; pass a Probe."
    where, _, loader = loaders[0]
    try:
        held = first_sample(loader, kinds_in)
    except NotRead:
        held = "something else"
    return (
        f"No image [C, H, W] was found in the first batch of the {where} loader, which holds {held}; pass a Probe, "
        "e.g. Probe.from_images(...)."
    )
