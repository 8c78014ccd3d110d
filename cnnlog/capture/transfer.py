"""Tensors from the device that a model is on to the host, without waiting where that can be, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from cnnlog.capture.sharding import gathered
from cnnlog.snapshot import FloatArray

# The CUDA streams on which copies are on their way to the host, while a capture is under way.
_leaving: ContextVar[set[torch.cuda.Stream] | None] = ContextVar("_leaving", default=None)


def to_host(tensor: torch.Tensor, *, fresh: bool = False) -> FloatArray:
    """A C-contiguous float32 copy of its own; bf16 and quantised tensors are converted, complex ones get an axis.

    During a capture, a copy from CUDA is under way but has not arrived. It has the values of now all the same, because
    whatever is done to the tensor later comes after it on the same stream.

    Args:
        tensor: on any device, of any type; gathered if it is distributed. A complex one becomes its two parts, real
            and imaginary, along a last axis of 2.
        fresh: the tensor was made for this and belongs to nobody else, so that its memory may be taken over.
    """
    tensor = gathered(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    on_host = tensor.device.type == "cpu" and not tensor.is_cuda
    if fresh and on_host and tensor.dtype == torch.float32 and tensor.is_contiguous():
        taken: FloatArray = tensor.detach().numpy()
        return taken
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    streams = _leaving.get()
    if tensor.is_cuda and streams is not None:
        converted = tensor.detach().float().contiguous()
        host = torch.empty(converted.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(converted, non_blocking=True)
        streams.add(torch.cuda.current_stream(tensor.device))
        arriving: FloatArray = host.numpy()
        return arriving
    # contiguous before NumPy sees it: channels_last strides would survive a plain copy
    copied = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    array: FloatArray = copied.numpy()
    return array


@contextmanager
def departures() -> Iterator[Callable[[], Callable[[], None] | None]]:
    """Let `to_host` begin copies without waiting for them.

    Yields a function. Called after the last copy has begun, it returns how to wait for all of them, or None if there is
    nothing to wait for.
    """
    streams: set[torch.cuda.Stream] = set()

    def ready() -> Callable[[], None] | None:
        events = [stream.record_event() for stream in streams]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return wait if events else None

    token = _leaving.set(streams)
    try:
        yield ready
    finally:
        _leaving.reset(token)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device. Sending it to CUDA does not wait for the work that is still to be done there.

    Args:
        tensor: on any device.
        device: where it should go.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
