"""The checksums of an event file, by a library: TensorBoard's own Python takes 56 ms for 350 kB, with the GIL held."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tensorboard.summary.writer.record_writer import RecordWriter

Checksum = Callable[[bytes], int]


def quicken(writer: Any) -> None:
    """Let a writer of event files take its checksums from google-crc32c; the bytes that it writes stay the same.

    Its queue, lock and thread stay TensorBoard's, and no module is changed: only this writer's own method. Where the
    library has no compiled code, or TensorBoard's writer has other parts than are known, nothing happens.

    Args:
        writer: an `EventFileWriter` of TensorBoard. It may be given again at any time.
    """
    records: Any = getattr(getattr(writer, "_async_writer", None), "_writer", None)
    checksum = _checksum()
    if checksum is None or type(records) is not RecordWriter or "write" in vars(records):
        return
    file = vars(records).get("_writer")
    if callable(getattr(file, "write", None)):
        records.write = partial(_write, file, checksum)


def _write(file: Any, checksum: Checksum, data: bytes) -> None:
    """Write one record: its length (8 bytes), that one's sum (4), the data, its sum (4)."""
    length = struct.pack("<Q", len(data))
    file.write(b"".join((length, _masked(checksum(length)), data, _masked(checksum(data)))))


def _masked(checksum: int) -> bytes:
    """As TensorFlow stores it, so that a sum of data that hold sums is a good one, too."""
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _checksum() -> Checksum | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its own Python is slow
        import google_crc32c
    value: Checksum = google_crc32c.value
    return value if google_crc32c.implementation == "c" else None
