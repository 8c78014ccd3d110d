"""A thread with a bounded queue: what keeps slow work out of the training thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Weighed(queue.Queue[T | None]):
    """A queue whose size is the weight of what waits, through the hooks that `queue.Queue` has for that.

    It is full once the weight reaches `maxsize`, so an empty queue takes an item of any weight.

    Args:
        maxsize: the weight from which on `put` waits.
        weigh: says what an item weighs; None, which ends the thread, weighs 1.
    """

    def __init__(self, maxsize: int, weigh: Callable[[T], int]) -> None:
        self._weigh = weigh
        super().__init__(maxsize)

    def _init(self, maxsize: int) -> None:
        self._items: deque[tuple[T | None, int]] = deque()
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, item: T | None) -> None:
        weight = 1 if item is None else max(1, self._weigh(item))
        self._items.append((item, weight))
        self._weight += weight

    def _get(self) -> T | None:
        item, weight = self._items.popleft()
        self._weight -= weight
        return item


class Mailbox(Generic[T]):
    """Hands items, in order, to one background thread.

    The thread starts with the first item. It is a daemon, so it does not keep a process from ending. If `handle`
    raises, the exception goes to `on_error`, and the thread goes on.

    Args:
        handle: is called with every item, in the background thread.
        on_error: is called with the item and the exception that `handle` raised on it, in the background thread.
        name: the thread's name.
        size: how many items may wait; or, if you give `weigh`, the weight from which on no more are taken.
        weigh: gives the weight of an item.
        drop_when_full: if the queue is full, `put` drops the item and counts it. Otherwise `put` waits for a place.

    Attributes:
        name: the thread's name.
        dropped: how many items were dropped.
    """

    def __init__(
        self,
        handle: Callable[[T], None],
        on_error: Callable[[T, Exception], None],
        *,
        name: str,
        size: int,
        weigh: Callable[[T], int] = lambda item: 1,
        drop_when_full: bool = False,
    ) -> None:
        self.name = name
        self.dropped = 0
        self._handle = handle
        self._on_error = on_error
        self._drop_when_full = drop_when_full
        self._queue = _Weighed(size, weigh)
        self._thread: threading.Thread | None = None

    def put(self, item: T) -> bool:
        """Queue an item.

        Args:
            item: for `handle`.

        Returns:
            False if it was dropped.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        try:
            self._queue.put(item, block=not self._drop_when_full)
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything queued so far is handled.

        Args:
            timeout: for how many seconds, at most; None waits as long as it takes.

        Returns:
            Whether everything was handled in that time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Drain, then end the thread.

        A thread that hangs in `handle` is left behind: it ends once `handle` returns, and the items that still wait are
        dropped and counted.

        Args:
            timeout: for how many seconds to drain, at most; None waits as long as it takes.

        Returns:
            Whether everything was handled in that time.
        """
        if self._thread is None:
            return True
        drained = self.drain(timeout)
        if not drained:
            self._drop_waiting()
        self._queue.put(None)
        if drained:
            self._thread.join(timeout)
        self._thread = None
        return drained

    def _drop_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
                self._queue.task_done()
                self.dropped += 1

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._handle(item)
            except Exception as error:
                self._on_error(item, error)
            finally:
                self._queue.task_done()
        self._queue.task_done()
