"""Loggers and writers that swallow what a probe's forward pass would write into the user's log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cnnlog.capture.kinds_of_state import State, state_of


def is_logger(thing: object) -> bool:
    """Whether an object writes a log: Lightning's loggers, and TensorBoard's writers.

    Args:
        thing: any object.
    """
    return state_of(thing, frozenset()) is State.LOGGER


class Muted:
    """Stands for an object and passes everything on, but for loggers: in their place there is silence.

    What is set on it stays here, and the object is left as it is.

    Args:
        held: a trainer or Fabric, which has loggers, or a logger itself.
    """

    __slots__ = ("_held", "_set")

    def __init__(self, held: Any) -> None:
        object.__setattr__(self, "_held", held)
        object.__setattr__(self, "_set", {})

    @property  # type: ignore[misc] # so that isinstance() says what it says of the other
    def __class__(self) -> Any:
        return type(self._held)

    def __getattr__(self, name: str) -> Any:
        held = self._held
        if is_logger(held):
            return _SILENCE
        if name in self._set:
            return self._set[name]
        if name == "logger":
            return None if held.logger is None else Muted(held.logger)
        if name == "loggers":
            return [Muted(logger) for logger in held.loggers]
        return getattr(held, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._set[name] = value


class _Silence:
    """Does nothing, whatever is asked of it."""

    def __call__(self, *_: Any, **__: Any) -> _Silence:
        return self

    def __getattr__(self, name: str) -> _Silence:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        return

    def __getitem__(self, _: Any) -> _Silence:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        return


_SILENCE = _Silence()
