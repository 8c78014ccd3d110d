"""The first sample of a loader is read, and the data set, the files and the random states are as they were."""

from __future__ import annotations

import functools
import gc
import io
import multiprocessing
import os
import random
import sqlite3
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset
from torch.utils.data.sampler import SubsetRandomSampler

from cnnlog import Probe
from cnnlog.capture import first_sample as module
from cnnlog.capture.first_sample import NotRead, first_sample

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
IMAGE = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
READ: dict[str, int] = {}
COUNT = 0


def kept(batch: Any) -> Any:
    return batch[0].clone() if isinstance(batch, (list, tuple)) else batch.clone()


class Base(Dataset[Any]):
    """Four images; what a reading leaves behind is the business of `touch`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def touch(self, index: int) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        self.touch(index)
        return IMAGE[index], index


class Handle:
    """As a file of h5py: opened by name, closed by `close`, and the number of its file is nowhere in Python."""

    __slots__ = ("_closed", "_name", "_raw")

    def __init__(self, name: str) -> None:
        self._raw = io.FileIO(name)

    def close(self) -> None:
        self._raw.close()

    def __getitem__(self, key: str) -> bytes:
        return self._raw.read(4)


class Descriptor(Base):
    fd: int | None = None

    def touch(self, index: int) -> None:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDONLY)
        os.read(self.fd, 5)


class Opened(Base):
    file: Any = None

    def touch(self, index: int) -> None:
        if self.file is None:
            self.file = open(self.path, "rb")  # noqa: SIM115 - as lazy data sets do
        self.file.read(3)


class ByProcess(Base):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.handles: dict[int, dict[str, Handle]] = {}

    def touch(self, index: int) -> None:
        if os.getpid() not in self.handles:
            self.handles[os.getpid()] = {"h5": Handle(self.path)}
        self.handles[os.getpid()]["h5"]["x"]


class Archive(Base):
    archive: Any = None
    database: Any = None

    def touch(self, index: int) -> None:
        if self.archive is None:
            self.archive = zipfile.ZipFile(self.path + ".zip")
            self.database = sqlite3.connect(self.path + ".db")
        self.archive.read("a.txt")


class Caches(Base):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.images: dict[int, torch.Tensor] = {}
        self.order: OrderedDict[int, int] = OrderedDict([(0, 5), (1, 6)])
        self.seen: set[int] = set()
        self.last: deque[int] = deque([7], maxlen=2)
        self.lists: defaultdict[int, list[int]] = defaultdict(list)
        self.counts: Counter[int] = Counter()
        self.ram = np.zeros((4, 3), np.float32)
        self.filled = torch.zeros(4, dtype=torch.bool)
        self.bytes = bytearray(4)
        self.nested: Any = [{"deep": [[1, 2], (3, [4])]}]

    def touch(self, index: int) -> None:
        self.images[index] = IMAGE[index]
        self.order.move_to_end(0)
        self.seen.add(index)
        self.last.append(index)
        self.lists[index].append(1)
        self.counts[index] += 1
        self.ram[index] = 1
        self.filled[index] = True
        self.bytes[index] = 1
        self.nested[0]["deep"][0].append(9)
        self.nested[0]["deep"][1][1].append(9)


class Slotted:
    __slots__ = ("calls", "late")
    late: int

    def __init__(self) -> None:
        self.calls = 0


class Counting(Base):
    of_all: ClassVar[int] = 0
    names: ClassVar[list[str]] = []

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads, self.slots = 0, Slotted()
        inside = 0

        def transform() -> int:
            nonlocal inside
            inside += 1
            return inside

        self.transform, self.partial = transform, functools.partial(self.count, [0])
        self.shared = multiprocessing.Value("i", 0)

    def count(self, box: list[int]) -> None:
        box[0] += 1

    @functools.lru_cache(4)  # noqa: B019 - as data sets do
    def loaded(self, index: int) -> int:
        return index

    @functools.cached_property
    def length(self) -> int:
        return 4

    def defaults(self, box: list[int] = []) -> None:  # noqa: B006
        box.append(1)

    def touch(self, index: int) -> None:
        global COUNT  # noqa: PLW0603
        COUNT += 1
        READ[self.path] = READ.get(self.path, 0) + 1
        self.reads += 1
        self.slots.calls += 1
        self.slots.late = 1
        type(self).of_all += 1
        Counting.names.append("read")
        self.transform()
        self.partial()
        self.loaded(index)
        self.defaults()
        self.shared.value += self.length // 4


class Drawing(Base):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.generator = torch.Generator().manual_seed(8)
        self.numpy = np.random.default_rng(8)
        self.legacy = np.random.RandomState(8)
        self.random = random.Random(8)

    def __getitem__(self, index: int) -> Any:
        drawn = (
            torch.rand((), generator=self.generator) + self.numpy.random() + self.legacy.rand() + self.random.random()
        )
        return IMAGE[index] * (drawn + torch.rand(()) + random.random() + np.random.rand()), index  # noqa: NPY002


def state(thing: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one for each kind
    """What can be seen of an object: values, not identities."""
    if isinstance(thing, (str, int, float, bytes, type(None))):
        return thing
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return thing.tolist()
    if isinstance(thing, torch.Generator):
        return thing.get_state().tolist()
    if isinstance(thing, np.random.Generator):
        return str(thing.bit_generator.state)
    if isinstance(thing, np.random.RandomState):
        return str(thing.get_state())
    if isinstance(thing, random.Random):
        return thing.getstate()
    if isinstance(thing, dict):
        return [(key, state(value, depth + 1)) for key, value in thing.items()]
    if isinstance(thing, (list, tuple, set, deque, bytearray)):
        return [state(value, depth + 1) for value in thing]
    if hasattr(thing, "cell_contents"):
        return state(thing.cell_contents, depth + 1)
    if isinstance(thing, functools.partial):
        return state(thing.args, depth + 1)
    if hasattr(thing, "value"):
        return thing.value
    if isinstance(thing, Slotted):
        return (thing.calls, hasattr(thing, "late"))
    closure = getattr(thing, "__closure__", None)
    return [state(getattr(thing, "__dict__", {}), depth + 1), [state(cell) for cell in closure or ()]]


def everything(dataset: Any) -> list[Any]:
    """All that a reading could have moved."""
    gc.collect()
    numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return [
        state(dataset.__dict__),
        [torch.get_rng_state().tolist(), random.getstate(), str(numpy)],
        [Counting.of_all, list(Counting.names), Counting.defaults.__defaults__, COUNT, dict(READ)],
        Counting.loaded.cache_info(),
        sorted(os.listdir("/dev/fd")),
    ]


KINDS = [Descriptor, Opened, ByProcess, Archive, Caches, Counting, Drawing]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Counting.loaded.cache_clear()
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(200)))
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    return path


def loaders(dataset: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(dataset, 2, shuffle=True, num_workers=workers, multiprocessing_context=FORK if workers else None)


WORKERS = [0, pytest.param(2, marks=pytest.mark.skipif(FORK is None, reason="no fork here"))]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("wrapped", ["bare", "subset", "concatenated"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_trace_is_left(kind: type[Base], wrapped: str, workers: int, path: Path) -> None:
    if workers and wrapped != "bare":
        pytest.skip("a process of its own leaves nothing behind whatever is wrapped")
    bare = kind(path)
    dataset: Dataset[Any] = bare
    if wrapped != "bare":
        dataset = Subset(bare, [0, 2]) if wrapped == "subset" else ConcatDataset([bare, kind(path)])
    loader = loaders(dataset, workers)
    before = everything(bare)
    image = first_sample(loader, kept)
    assert everything(bare) == before
    assert image.shape == (1, 3, 6, 6)
    if kind is not Drawing:
        assert torch.equal(image[0], IMAGE[0])
    assert torch.equal(first_sample(loader, kept), image)  # the same source is the same sample


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_of_a_data_set_leaves_no_trace_either(kind: type[Base], path: Path) -> None:
    dataset = kind(path)
    before = everything(dataset)
    assert Probe.from_dataset(dataset, [1, 2]).tensor.shape == (2, 3, 6, 6)
    assert everything(dataset) == before


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_does_leave_a_trace_without_this(kind: type[Base], path: Path) -> None:
    dataset = kind(path)
    before = everything(dataset)
    dataset[0]
    assert everything(dataset) != before


def test_the_drawn_sample_does_not_depend_on_what_was_drawn_before(path: Path) -> None:
    first = first_sample(loaders(Drawing(path), 0), kept)
    used = Drawing(path)
    for index in range(3):
        used[index]
    torch.manual_seed(99)
    assert torch.equal(first_sample(loaders(used, 0), kept), first)


class AlreadyOpen(Base):
    """A file that is open before the workers are forked, so that all share its position."""

    def __init__(self, path: Path, how: str) -> None:
        super().__init__(path)
        self.how = how
        self.file: Any = os.open(path, os.O_RDONLY) if how == "number" else open(path, how)  # noqa: SIM115
        self.at: Callable[[], int] = self._at
        self.touch(0)

    def touch(self, index: int) -> None:
        os.read(self.file, 7) if self.how == "number" else self.file.read(7)

    def _at(self) -> int:
        return os.lseek(self.file, 0, os.SEEK_CUR) if self.how == "number" else self.file.tell()

    def following(self) -> Any:
        return os.read(self.file, 5) if self.how == "number" else self.file.read(5)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("how", ["number", "rb", "r"])
def test_files_that_are_open_stay_where_they_were(how: str, workers: int, path: Path) -> None:
    path.write_bytes(bytes(range(32, 120)) * 400)
    dataset = AlreadyOpen(path, how)
    before = dataset.at()
    first_sample(loaders(dataset, workers), kept)
    assert dataset.at() == before
    expected = bytes(range(39, 44))
    assert dataset.following() in (expected, expected.decode())
    os.close(dataset.file) if how == "number" else dataset.file.close()


# --- how it is read


class Stream(IterableDataset[Any]):
    def __init__(self, path: Path) -> None:
        self.path, self.position = str(path), 0

    def __iter__(self) -> Iterator[Any]:
        with open(self.path, "rb") as file:
            while file.read(2):
                self.position += 1
                yield IMAGE[self.position % 4], self.position


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stream_is_at_its_beginning_afterwards(workers: int, path: Path) -> None:
    stream = Stream(path)
    before = everything(stream)
    image = first_sample(
        DataLoader(stream, 2, num_workers=workers, multiprocessing_context=FORK if workers else None), kept
    )
    assert torch.equal(image[0], IMAGE[1])
    assert everything(stream) == before


class OneWay(IterableDataset[Any]):
    """A stream that is read once: an iterator that lies in an attribute."""

    def __init__(self) -> None:
        self.items = (image for image in IMAGE)
        next(self.items)

    def __iter__(self) -> Iterator[Any]:
        return self.items


@pytest.mark.skipif(FORK is None, reason="no fork here")
def test_what_can_be_read_once_only_is_read_in_a_copy_of_the_process() -> None:
    stream = OneWay()
    assert torch.equal(first_sample(DataLoader(stream, 1), lambda batch: batch.clone())[0], IMAGE[1])
    assert torch.equal(next(stream.items), IMAGE[1])


class FromPipe(IterableDataset[Any]):
    def __init__(self) -> None:
        read, write = os.pipe()
        self.file, self.end = open(read, "rb", 0), open(write, "wb", 0)  # noqa: SIM115

    def __iter__(self) -> Iterator[Any]:
        yield torch.tensor(list(self.file.read(2)))


def test_a_pipe_is_not_read() -> None:
    stream = FromPipe()
    stream.end.write(b"abcd")
    with pytest.raises(NotRead, match="the first sample of the FromPipe would use it up"):
        first_sample(DataLoader(stream, 1), kept)
    assert stream.file.read(4) == b"abcd"
    stream.file.close()
    stream.end.close()


class Named(Sampler[Any]):
    """Keys instead of numbers."""

    def __iter__(self) -> Iterator[Any]:
        return iter(["b", "a"])

    def __len__(self) -> int:
        return 2


class ByName(Dataset[Any]):
    def __getitem__(self, key: Any) -> Any:
        return {"a": IMAGE[0], "b": IMAGE[1]}[key]

    def __len__(self) -> int:
        return 2


class Whole(Dataset[Any]):
    """Is asked for a whole batch at once."""

    def __getitem__(self, indices: Any) -> Any:
        assert isinstance(indices, list)
        return IMAGE[indices]

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("loader", "number"),
    [
        (lambda: DataLoader(ByName(), 2, sampler=Named()), 1),
        (lambda: DataLoader(ByName(), batch_sampler=BatchSampler(Named(), 2, False)), 1),
        (lambda: DataLoader(Whole(), batch_size=None, sampler=BatchSampler(range(4), 2, False)), 0),
        (lambda: DataLoader(list(IMAGE), 2, sampler=SubsetRandomSampler([2, 3])), 2),  # type: ignore[arg-type]
        (lambda: DataLoader(list(IMAGE), 2, shuffle=True), 0),  # type: ignore[arg-type]
        (lambda: DataLoader(list(IMAGE[:, None]), batch_size=None), 0),  # type: ignore[arg-type]
    ],
)
def test_samplers_and_batches_of_all_kinds(loader: Callable[[], DataLoader[Any]], number: int) -> None:
    image = first_sample(loader(), lambda batch: batch.clone())
    assert torch.equal(image, IMAGE[number : number + 1])


def test_the_workers_own_beginning_runs(path: Path) -> None:
    class Late(Base):
        ready = False

        def touch(self, index: int) -> None:
            assert self.ready, "worker_init_fn makes it ready"

    def begin(worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        info.dataset.ready = True  # type: ignore[attr-defined]

    loader = DataLoader(Late(path), 2, num_workers=2, multiprocessing_context=FORK, worker_init_fn=begin)
    assert first_sample(loader, kept).shape == (1, 3, 6, 6)


# --- what fails


def fails(kind: str) -> Callable[[Any], Any]:
    def collate(samples: Any) -> Any:
        if kind == "raises":
            raise ValueError("two samples are needed\nat least")
        if kind == "dies":
            os._exit(3)
        time.sleep(60)

    return collate


@pytest.mark.parametrize(
    ("kind", "workers", "said"),
    [
        ("raises", 0, "at least"),
        ("raises", 1, "at least"),
        ("dies", 1, "exited unexpectedly"),
        ("hangs", 1, "timed out"),
    ],
)
def test_a_collate_function_that_fails(
    kind: str, workers: int, said: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT", 2.0)
    dataset = Counting(path)
    before = everything(dataset)
    loader = DataLoader(
        dataset, 2, collate_fn=fails(kind), num_workers=workers, multiprocessing_context=FORK if workers else None
    )
    began = time.monotonic()
    with pytest.raises(NotRead, match=said):
        first_sample(loader, kept)
    assert time.monotonic() - began < 20
    after = everything(dataset)
    if kind == "hangs" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15):
        before, after = before[:-1], after[:-1]  # older versions of torch keep two pipes of a worker that was ended
    assert after == before
    samples = first_sample(loader, lambda samples: samples[0][0].clone(), collated=False)
    assert torch.equal(samples, IMAGE[0])


def test_an_empty_data_set() -> None:
    with pytest.raises(NotRead):
        first_sample(DataLoader([]), kept)  # type: ignore[arg-type]
