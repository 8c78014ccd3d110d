"""The first collated sample of a data loader, read without leaving a trace in the data set."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    get_worker_info,
)

from cnnlog.capture.rng import generators_in, kept_rng, seed_all, seed_these
from cnnlog.capture.undo import Noted

_T = TypeVar("_T")
SEED = 20_260_101  # random transforms are drawn from it, so that the same source gives the same sample at every start
TIME_LIMIT = 60.0  # seconds; of a worker that hangs
_TRIED = 4  # samples, until one can be collated alone
_PATIENCE = 2.0  # seconds, after which no other sample is tried
_DEPTH = 5  # so far below a data set its random generators are looked for


class NotRead(ValueError):
    """A sample could not be read; the text says why, in one clause."""


class Batches(IterableDataset[Any]):
    """Somebody's own loader, whose batches are samples of ours.

    Args:
        loader: gives batches.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def first_sample(
    loader: DataLoader[Any],
    use: Callable[[Any], _T],
    *,
    collated: bool = True,
    touched: Iterable[object] = (),
    in_use: bool = False,
) -> _T:
    """What something makes of the first collated sample of a loader.

    A loader that has workers is read by one worker of another loader, which has the same data set, collate function,
    start method and `worker_init_fn`. One without workers is read in this process, and what the reading changed is
    given back: attributes, caches, open files. Random states are given back in any case.

    Args:
        loader: it is not touched itself.
        use: is given the sample, a batch of one, and makes something of it that does not share its memory.
        collated: by the loader's own collate function. If not, `use` is given a list of the sample as the data set has
            it.
        touched: what `use` may change besides, and should be given back.
        in_use: the loader's own workers, if it has any, are reading already.

    Raises:
        NotRead: the data set or the collate function fails, the worker dies, or it takes longer than `TIME_LIMIT`; or
            the sample would be missing in the training, because it comes from a queue, a pipe or a thread.
    """
    dataset, collate = loader.dataset, loader.collate_fn
    source = dataset.loader if isinstance(dataset, Batches) else dataset
    kind = type(source).__name__
    roots = [source, collate, loader.sampler, loader.batch_sampler, *touched]
    noted = Noted(roots)
    apart = loader.num_workers > 0 or (noted.one_way and "fork" in multiprocessing.get_all_start_methods())
    if noted.shared or (noted.one_way and not apart):
        why = f", because of the {noted.shared} in it" if noted.shared else ""
        raise NotRead(f"reading the first sample of the {kind} would use it up{why}")
    generators = generators_in(roots, depth=_DEPTH)
    reasons: list[str] = []
    begun = time.monotonic()
    with ExitStack() as stack:
        if not apart:
            stack.callback(noted.tell, kind)
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(kept_rng(generators))
        warnings.simplefilter("ignore")  # the same come in training
        for first in _first_indices(loader):
            try:
                seed_all(generators, SEED)
                with noted.reading(here=not apart, in_use=in_use and apart):
                    return _read(loader, first(), use, apart=apart, collate=collate if collated else _as_it_is)
            except StopIteration:
                reasons.append(f"the {kind} is empty")
            except Exception as error:  # the data set's and the collate function's are somebody's code
                reasons.append(_last_line(error))
                if time.monotonic() - begun > _PATIENCE:  # each of the others would take as long
                    break
    raise NotRead(reasons[0])


def _first_indices(loader: DataLoader[Any]) -> list[Callable[[], Any]]:
    """What to ask the data set for: its first index; or else the first that a sampler of the user's own gives."""
    if isinstance(loader.dataset, IterableDataset):
        return [lambda: None]
    batches, sampler = loader.batch_sampler, loader.sampler
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    if isinstance(sampler, SubsetRandomSampler) and len(sampler.indices) > 0:
        return [lambda: sampler.indices[0]]
    if isinstance(sampler, BatchSampler) and batches is None:
        return [lambda: [0]]  # the data set is given the indices of a whole batch
    first: list[Callable[[], Any]] = [lambda: 0]
    if isinstance(loader.dataset, Sized):  # a first one that cannot be read, or is left out of its batch
        first += [partial(int, index) for index in range(1, min(_TRIED, len(loader.dataset)))]
    if batches is not None and type(batches) is not BatchSampler:
        return [*first, lambda: next(iter(next(iter(batches))))]
    if not isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        return [*first, lambda: next(iter(sampler))]
    return first


def _read(
    loader: DataLoader[Any], index: Any, use: Callable[[Any], _T], *, apart: bool, collate: Callable[[Any], Any]
) -> _T:
    """Read through a loader of our own; how it is set up says what is read."""
    options: dict[str, Any] = {"collate_fn": collate, "generator": torch.Generator().manual_seed(SEED)}
    streams = isinstance(loader.dataset, IterableDataset)
    options["batch_size"] = None if loader.batch_sampler is None else 1
    if not streams:
        options["sampler"] = [index]
    if apart:
        options |= {
            "num_workers": 1,
            "timeout": loader.timeout or TIME_LIMIT,
            "multiprocessing_context": loader.multiprocessing_context or (None if loader.num_workers else "fork"),
            "worker_init_fn": _Begin(loader.worker_init_fn),
        }
        if streams:
            options["prefetch_factor"] = 1
    batches = iter(DataLoader(loader.dataset, **options))
    try:
        return use(next(batches))
    finally:
        # at once, not when a traceback lets go of it: end the worker; close what the stream's `__iter__` opened
        getattr(batches, "_shutdown_workers", lambda: None)()
        stream = getattr(getattr(batches, "_dataset_fetcher", None), "dataset_iter", None)
        with suppress(Exception):
            getattr(stream, "close", lambda: None)()


class _Begin:
    """A worker's beginning: its data set's own generators are seeded, then the loader's own function runs.

    Args:
        own: the loader's `worker_init_fn`.
    """

    def __init__(self, own: Callable[[int], object] | None) -> None:
        self.own = own

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        if info is not None:
            seed_these(generators_in([info.dataset], depth=_DEPTH), SEED)
        if self.own is not None:
            self.own(worker)


def _as_it_is(samples: Any) -> Any:
    return samples


def _last_line(error: Exception) -> str:
    """What an error says, without the traceback that a worker's has before it."""
    if isinstance(error, NotRead):
        return str(error)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    told = lines[-1].strip()
    return told if len(lines) > 1 else f"{type(error).__name__}: {told}"
