"""The background thread: in order, bounded, and never in the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cnnlog.recording.mailbox import Mailbox


class Gate:
    """A handler that notes what it gets, and stands still while the gate is shut."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.inside = threading.Event()
        self.open = threading.Event()

    def __call__(self, item: int) -> None:
        self.inside.set()
        assert self.open.wait(20)
        self.handled.append(item)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def unexpected(item: int, error: Exception) -> None:
    raise AssertionError(f"handling {item} failed") from error


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_items_are_handled_in_order_in_one_other_thread() -> None:
    seen: list[tuple[int, int]] = []
    box: Mailbox[int] = Mailbox(
        lambda item: seen.append((item, threading.get_ident())), unexpected, name="box one", size=2
    )
    for item in range(50):
        assert box.put(item)
    assert box.close()
    assert [item for item, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2
    assert not threads("box one")


def test_no_thread_before_the_first_item_and_a_daemon_then() -> None:
    box: Mailbox[int] = Mailbox(lambda _: None, unexpected, name="box two", size=1)
    assert not threads("box two")
    box.put(1)
    (thread,) = threads("box two")
    assert thread.daemon
    assert box.close()


def test_a_full_queue_waits(gate: Gate) -> None:
    box: Mailbox[int] = Mailbox(gate, unexpected, name="box", size=2)
    box.put(0)
    assert gate.inside.wait(20)  # 0 is in hand, 1 and 2 wait
    box.put(1)
    box.put(2)
    fourth = threading.Thread(target=box.put, args=(3,))
    fourth.start()
    fourth.join(0.1)
    assert fourth.is_alive(), "there was no place for the fourth"
    gate.open.set()
    fourth.join(20)
    assert box.close()
    assert gate.handled == [0, 1, 2, 3]
    assert box.dropped == 0


def test_drop_when_full_drops_the_newest_and_counts(gate: Gate) -> None:
    box: Mailbox[int] = Mailbox(gate, unexpected, name="box", size=2, drop_when_full=True)
    box.put(0)
    assert gate.inside.wait(20)
    assert [box.put(item) for item in range(1, 6)] == [True, True, False, False, False]
    assert box.dropped == 3
    gate.open.set()
    assert box.drain()
    assert box.put(6)
    assert box.close()
    assert gate.handled == [0, 1, 2, 6]
    assert box.dropped == 3


def test_a_queue_by_weight_is_full_at_its_size_and_an_empty_one_takes_anything(gate: Gate) -> None:
    box: Mailbox[int] = Mailbox(gate, unexpected, name="box", size=10, weigh=lambda item: item, drop_when_full=True)
    box.put(3)
    assert gate.inside.wait(20)  # in hand, and no longer waiting
    assert [box.put(item) for item in (5, 4, 7, 1)] == [True, True, True, False], "full from 10 on"
    gate.open.set()
    assert box.drain()
    assert box.put(1000)
    assert box.close()
    assert gate.handled == [3, 5, 4, 7, 1000]
    assert box.dropped == 1


def test_an_exception_goes_to_on_error_with_its_item_and_the_thread_lives_on() -> None:
    handled, failed = [], []

    def handle(item: int) -> None:
        if item % 2:
            raise ValueError(f"odd {item}")
        handled.append(item)

    box: Mailbox[int] = Mailbox(handle, lambda item, error: failed.append((item, str(error))), name="box", size=2)
    for item in range(5):
        box.put(item)
    assert box.drain()
    assert handled == [0, 2, 4]
    assert failed == [(1, "odd 1"), (3, "odd 3")]
    assert box.close()


def test_drain_waits_for_all_that_was_queued() -> None:
    handled = []

    def handle(item: int) -> None:
        time.sleep(0.02)
        handled.append(item)

    box: Mailbox[int] = Mailbox(handle, unexpected, name="box", size=8)
    for item in range(5):
        box.put(item)
    assert box.drain(20)
    assert handled == [0, 1, 2, 3, 4]
    assert box.close()


def test_a_hung_handler_costs_no_more_than_the_time_out(gate: Gate) -> None:
    box: Mailbox[int] = Mailbox(gate, unexpected, name="hung", size=3, drop_when_full=True)
    for item in range(3):
        box.put(item)
    assert gate.inside.wait(20)
    start = time.monotonic()
    assert not box.drain(0.1)
    assert not box.close(0.1)
    assert 0.2 <= time.monotonic() - start < 5
    assert box.dropped == 2, "those that still waited"
    gate.open.set()
    until(lambda: not threads("hung"))  # it ends when it comes back
    assert gate.handled == [0]


def test_close_is_idempotent_and_a_box_may_be_used_again() -> None:
    handled: list[int] = []
    box: Mailbox[int] = Mailbox(handled.append, unexpected, name="again", size=1)
    assert box.close()
    box.put(1)
    assert box.close()
    assert box.close()
    box.put(2)
    assert box.close()
    assert handled == [1, 2]
    assert not threads("again")
