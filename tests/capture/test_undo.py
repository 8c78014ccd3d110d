"""What a data set is given back as, and what is left alone because it is not the data set's own."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.pool
import os
import queue
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cnnlog import Probe
from cnnlog.capture import undo
from cnnlog.capture.first_sample import NotRead, first_sample
from cnnlog.capture.kinds_of_state import is_foreign
from cnnlog.capture.loan import borrow
from cnnlog.capture.rng import kept_rng

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
forks = pytest.mark.skipif(FORK is None, reason="no fork here")
IMAGE = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Images(Dataset[Any]):
    """Four images; `touch` is what a reading does besides."""

    def __init__(self, touch: Callable[[Any], object] = lambda _: None, **attributes: Any) -> None:
        self.touch = touch
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        self.touch(self)
        return IMAGE[index]


def read(dataset: Any, *, workers: int = 0) -> torch.Tensor:
    loader: DataLoader[Any] = DataLoader(
        dataset, 2, num_workers=workers, multiprocessing_context=FORK if workers else None
    )
    image: torch.Tensor = first_sample(loader, lambda batch: batch.clone())
    return image


# --- bytes


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_nothing_is_written_into_memory_that_is_only_read(dtype: Any, tmp_path: Path) -> None:
    np.full(64, np.nan, dtype).tofile(tmp_path / "a.bin")
    mapped = torch.from_numpy(np.memmap(tmp_path / "a.bin", dtype, "r"))
    read(Images(mapped=mapped))  # a write would end this process


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_file_that_another_writes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.zeros(64, np.float32).tofile(path)
    mapped = torch.from_numpy(np.memmap(path, np.float32, "r"))
    read(Images(lambda _: np.memmap(path, np.float32, "r+").fill(1), mapped=mapped))
    assert mapped.tolist() == [1.0] * 64


def test_what_is_the_same_is_not_written_and_what_is_not_is() -> None:
    same, cast = torch.tensor([float("nan"), 1.0]), torch.tensor([0.0])
    other, every = torch.tensor([1.0, float("nan")]), torch.ones(3, 1).expand(3, 4)
    complex_, objects = torch.tensor([1 + 1j], dtype=torch.complex128), np.array([[1], {}], dtype=object)

    def touch(_: Any) -> None:
        cast.neg_()
        other[0] = float("nan")
        every[:, :1].mul_(2)
        complex_.mul_(2)
        objects[0].append(2)
        objects[1] = 3

    inside, mapping = objects[0], objects[1]
    version = same._version
    read(Images(touch, held=[same, cast, other, every, complex_, objects]))
    assert same._version == version
    assert not torch.signbit(cast).any()
    assert other[0] == 1
    assert other.isnan().tolist() == [False, True]
    assert every.tolist() == [[1.0] * 4] * 3
    assert complex_.item() == 1 + 1j
    assert objects[0] is inside == [1]
    assert objects[1] is mapping


# --- what is used up by who reads it


class Consumes(IterableDataset[Any]):
    def __init__(self, take: Callable[[], Any], *held: Any) -> None:
        self.take, self.held = take, held

    def __iter__(self) -> Iterator[Any]:
        yield IMAGE[self.take()]


def sources() -> dict[str, Callable[[], tuple[Callable[[int], Any], Callable[[], Any], Any]]]:
    """Name -> what makes how to put, how to take, and what holds it."""

    def plain(kind: Any) -> Any:
        made = kind()
        return made.put, made.get, made

    def pipe() -> Any:
        ends = multiprocessing.Pipe()
        return ends[0].send, ends[1].recv, ends

    return {
        "Queue": lambda: plain(queue.Queue),
        "PriorityQueue": lambda: plain(queue.PriorityQueue),
        "SimpleQueue": lambda: plain(queue.SimpleQueue),
        "processes' Queue": lambda: plain(multiprocessing.Queue),
        "processes' SimpleQueue": lambda: plain(multiprocessing.SimpleQueue),
        "torch's Queue": lambda: plain(torch.multiprocessing.Queue),
        "Connection": pipe,
    }


@pytest.mark.parametrize("kind", sources())
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=forks)])
def test_a_queue_or_a_pipe_is_not_read(kind: str, workers: int) -> None:
    put, take, held = sources()[kind]()
    put(2)
    put(3)
    stream = Consumes(take, held)
    name = kind.rsplit(maxsplit=1)[-1]
    with pytest.raises(NotRead, match=f"the first sample of the Consumes would use it up, because of the {name} in it"):
        read(stream, workers=workers)
    assert torch.equal(next(iter(stream)), IMAGE[2])


def test_a_running_thread_and_a_pool_are_not_read_from() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with pytest.raises(NotRead, match="Thread"):
        read(Images(thread=thread))  # it would be started, and cannot be twice
    thread.start()
    with pytest.raises(NotRead, match="Thread"):
        read(Images(thread=thread))
    stop.set()
    thread.join()
    assert torch.equal(read(Images(thread=thread)), IMAGE[:1])
    with ThreadPoolExecutor(1) as pool, pytest.raises(NotRead, match="ThreadPoolExecutor"):
        read(Images(pool=pool))
    with multiprocessing.pool.ThreadPool(1) as threads, pytest.raises(NotRead, match="ThreadPool"):
        read(Images(pool=threads))
    filled: queue.Queue[int] = queue.Queue()
    with pytest.raises(ValueError, match="image of the Images would use up what its Queue gives"):
        Probe.from_dataset(Images(filled=filled))


@forks
def test_a_dict_of_a_manager_is_no_queue() -> None:
    with multiprocessing.Manager() as manager:
        cache = manager.dict()
        assert torch.equal(read(Images(cache=cache)), IMAGE[:1])
        with pytest.raises(NotRead):
            read(Images(cache=manager.Queue()))


# --- files


def open_files() -> set[str]:
    return {*os.listdir("/dev/fd")}


INSTALLED = """
import functools, io, os, queue

held, started, calls, handle = {}, False, [], object()

def raw(path):
    held["raw"] = os.open(path, 0)
    return held["raw"]

def file(path):
    held["file"] = io.FileIO(path)
    return held["file"].fileno()

def wrap(number):
    held["wrap"] = io.FileIO(number)

def start():
    global started
    assert not started, "it starts once"
    started = True
    Base.started += 1
    calls.append(1)
    loaded()
    start.done = True

@functools.lru_cache
def loaded():
    return object()

class Base:
    started = 0

class Client:
    def __init__(self):
        self.pool = queue.LifoQueue()
        self.pool.put(None)
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed package."""
    module: Any = types.ModuleType("installed")
    module.__file__ = "/x/site-packages/installed/__init__.py"
    monkeypatch.setitem(sys.modules, "installed", module)
    is_foreign.cache_clear()
    exec(compile(INSTALLED, module.__file__, "exec"), vars(module))
    return module


def test_what_was_opened_by_number_is_closed_and_what_others_hold_is_not(tmp_path: Path, installed: Any) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(100))

    def touch(dataset: Any) -> None:
        dataset.fd = os.open(path, os.O_RDONLY)
        dataset.by_process = {os.getpid(): [os.open(path, os.O_RDONLY)]}
        dataset.classes = installed.file(path)  # by chance these are as many as the number of the file
        dataset.channels = installed.raw(path)
        dataset.wrapped = os.open(path, os.O_RDONLY)
        installed.wrap(dataset.wrapped)

    before = open_files()
    dataset = Images(touch)
    read(dataset)
    assert vars(dataset) == {"touch": touch}
    held = installed.held
    assert open_files() - before == {str(held["raw"]), str(held["file"].fileno()), str(held["wrap"].fileno())}
    assert os.read(held["raw"], 1) == held["file"].read(1) == held["wrap"].read(1) == b"\0"
    os.close(held["raw"])
    held["file"].close()
    held["wrap"].close()


def test_a_number_that_is_no_file_leaves_the_file_of_this_number_where_it_is(tmp_path: Path, installed: Any) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    number, mine = installed.raw(path), os.open(path, os.O_RDONLY)

    def touch(_: Any) -> None:
        installed.held["read"](number + 0, 10)
        os.read(mine, 20)

    exec("def read(number, n): os.read(number, n)\nheld['read'] = read", vars(installed))
    read(Images(touch, num_classes=number, fd=mine))
    assert os.read(number, 1) == b"\x0a"
    assert os.read(mine, 1) == b"\0"
    os.close(number)
    os.close(mine)


def test_the_functions_of_os_are_as_they_were() -> None:
    before = os.open, os.read, os.lseek
    read(Images())
    assert (os.open, os.read, os.lseek) == before


# --- whose it is


def test_an_installed_package_is_left_as_it_is(installed: Any) -> None:
    start, base = installed.start, installed.Base

    class Derived(Images, base):  # type: ignore[misc, valid-type]
        pass

    read(Derived(lambda _: start(), loaded=installed.loaded))
    assert installed.started
    assert installed.calls == [1]
    assert base.started == 1
    assert installed.loaded.cache_info().currsize == 1
    assert start.done


def test_the_connections_of_a_client_are_no_queue_of_data(installed: Any) -> None:
    assert torch.equal(read(Images(client=installed.Client())), IMAGE[:1])
    with pytest.raises(NotRead, match="LifoQueue"):
        read(Images(pool=installed.Client().pool))


STATE = types.ModuleType("state_of_the_user")
exec("n, handles = 0, []\nclass Setting:\n    seen = 0\n", vars(STATE))
N = 0


class Mangled:
    __slots__ = ("__n", "file")

    def __init__(self) -> None:
        self.__n = 0

    def count(self) -> int:
        self.__n += 1
        return self.__n


def test_globals_of_inner_functions_modules_of_the_user_and_slots_are_given_back() -> None:
    setting = STATE.Setting
    mangled = Mangled()

    def touch(_: Any) -> None:
        def inner() -> None:
            global N  # noqa: PLW0603
            N += 1

        inner()
        STATE.n += 1  # type: ignore[attr-defined]
        STATE.handles.append(1)
        STATE.Setting.seen += 1
        mangled.count()
        mangled.file = 3  # type: ignore[attr-defined]

    read(Images(touch))
    assert N == STATE.n == setting.seen == 0
    assert STATE.handles == []
    assert not hasattr(mangled, "file")
    assert mangled.count() == 1


@forks
def test_what_another_thread_does_while_a_worker_reads_stays() -> None:
    cache: dict[int, int] = {}
    private, shared, counts = torch.zeros(3), torch.zeros(3).share_memory_(), multiprocessing.Array("i", 3)
    view = torch.from_numpy(np.frombuffer(counts.get_obj(), np.int32))  # type: ignore[call-overload]
    plain = np.zeros(3)

    def in_the_worker(dataset: Any) -> None:
        shared.add_(1)
        view.add_(1)

    def collate(samples: Any) -> torch.Tensor:
        return torch.stack(samples)

    def meanwhile(batch: torch.Tensor) -> torch.Tensor:
        cache[0] = 1  # as a thread of this process
        dataset.seen = 1  # type: ignore[attr-defined]
        private.add_(1)
        plain[:] = 1
        return batch.clone()

    dataset = Images(in_the_worker, held=[cache, private, shared, view, plain, counts])
    loader: DataLoader[Any] = DataLoader(dataset, 2, num_workers=1, multiprocessing_context=FORK, collate_fn=collate)
    assert torch.equal(first_sample(loader, meanwhile), IMAGE[:1])
    assert cache == {0: 1}
    assert dataset.seen == 1  # type: ignore[attr-defined]
    assert private.tolist() == plain.tolist() == [1] * 3
    if sys.platform == "linux":  # elsewhere nobody knows what a view of shared memory is
        assert view.tolist() == [0] * 3
    assert shared.tolist() == counts[:] == [0] * 3


# --- what cannot be noted


class Proxy:
    """Stands for an object that there is not yet, as those of web frameworks do."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("working outside of a context")


def test_an_object_that_refuses_to_be_looked_at_is_passed_over() -> None:
    dataset = Images(lambda dataset: dataset.seen.append(1), proxy=Proxy(), seen=[])
    assert torch.equal(read(dataset), IMAGE[:1])
    assert dataset.seen == []  # type: ignore[attr-defined]
    assert torch.equal(Probe.from_dataset(dataset).tensor, IMAGE[:1])


def test_a_model_that_holds_such_an_object_can_be_lent() -> None:
    model = torch.nn.Conv2d(3, 2, 1)
    model.held = [Proxy()]  # type: ignore[assignment]
    with borrow(model):
        model(IMAGE)


def test_that_not_all_is_given_back_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "_told", set())
    many = Images(held=[[[index] for index in range(200)] for _ in range(60)])
    with pytest.warns(UserWarning, match="Images holds more than 10,000 objects or 64 MB"):
        read(many)
    read(many)
    undo._told.clear()
    monkeypatch.setattr(undo, "BYTES_LIMIT", 100)
    large = torch.zeros(100), np.zeros(100)
    read(Images(large=large))  # nothing is changed, and nothing told
    for array in large:
        undo._told.clear()
        with pytest.warns(UserWarning, match="Images holds more"):
            read(Images(lambda dataset: dataset.large.__setitem__(0, 1), large=array))
        undo._told.clear()
        with pytest.warns(UserWarning, match="Images holds more"):
            Probe.from_dataset(Images(lambda dataset: dataset.large.__setitem__(0, 2), large=array))


class Stubborn(random.Random):
    """Its seed is set in another way."""

    def seed(self, *_: Any) -> None:
        if hasattr(self, "made"):
            raise NotImplementedError


def test_generators_that_cannot_be_seeded_are_given_back() -> None:
    legacy, own = np.random.RandomState(np.random.PCG64(3)), Stubborn()
    own.made = True  # type: ignore[attr-defined]
    expected = np.random.RandomState(np.random.PCG64(3)).rand()
    state = own.getstate()

    def touch(_: Any) -> None:
        legacy.rand()
        own.random()

    with kept_rng([legacy, own], seed=4):
        touch(None)
    read(Images(touch, generators=[legacy, own]))
    assert own.getstate() == state
    assert legacy.rand() == expected


def test_numbers_of_c_are_given_back() -> None:
    numbers = (ctypes.c_float * 2)(float("nan"), 1.0)
    read(Images(lambda dataset: dataset.numbers.__setitem__(1, 5.0), numbers=numbers))
    assert numbers[1] == 1
