"""The bytes of tensors: copied, compared, and put back in place, without a trace in what others hold of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cnnlog.capture.sharding import local_part

SMALL = 2**20  # bytes: tensors below are copied at every loan
_SAME_SIZE_INT = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Kept:
    """One tensor: where it pointed to, and a copy of its bytes once somebody has asked for one.

    Args:
        tensor: any; it is not copied here.

    Attributes:
        tensor: the one that was given.
        alias: the memory that it pointed to; of a distributed one that of this process's part.
        copy: its bytes, or None.
    """

    __slots__ = ("_local", "_pointer", "_requires_grad", "_version", "alias", "copy", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.copy: torch.Tensor | None = None
        # A process's own part can be compared without the others.
        self._local = local_part(tensor) if is_wrapper(tensor) else tensor
        self.alias = self._local.detach()
        self._version = _version(self._local)
        self._pointer = _pointer(self._local)
        self._requires_grad = tensor.requires_grad

    @property
    def written(self) -> bool:
        """Whether anybody has written into the tensor in a way that torch counts."""
        return _version(self._local) != self._version

    def keep(self) -> None:
        """Copy the bytes, unless that has been done."""
        if self.copy is None:
            try:
                self.copy = self.alias.clone()
            except torch.OutOfMemoryError:  # a model that fills its device
                self.copy = self.alias.cpu()

    def put_in_place(self) -> bool:
        """Point to the old memory again; tells whether the tensor pointed elsewhere, or was written."""
        _set_requires_grad(self.tensor, self._requires_grad)
        moved = _pointer(self._local) != self._pointer or _form(self._local) != _form(self.alias)
        touched = moved or self.written
        if moved:
            self._local.data = self.alias
        return touched

    def changed(self, *, tell: bool) -> bool:
        """Whether the bytes differ from those of the copy.

        Args:
            tell: find out for certain. Otherwise True may also mean that finding out would make this thread wait.
        """
        if self.copy is None:
            return False
        if self.alias.layout is not torch.strided or self.alias.is_meta:  # whose bytes cannot be compared
            return self.written
        if not tell and _comparing_waits(self.alias) and not _is_expanded(self.alias):
            return True
        return not _same_bytes(self.alias, self.copy.to(self.alias.device))


class Group:
    """Small plain tensors of one device and type, whose bytes are copied, compared and put back all at once.

    The call costs more than the bytes. Those that point to other memory afterwards get their bytes there.

    Args:
        members: the tensors.
    """

    def __init__(self, members: Sequence[torch.Tensor]) -> None:
        self._members = members
        self._aliases = [tensor.detach() for tensor in members]  # of the memory that they are in
        self._places = self._now_places()
        self._bytes = self._now()

    def put_back(self) -> bool:
        """Make the bytes what they were; whether they were not.

        Where to find out would make this thread wait, the bytes are written, and nobody knows: False.
        """
        waits = _comparing_waits(self._bytes)
        if (places := self._now_places()) != self._places:
            for tensor, alias, place, now in zip(self._members, self._aliases, self._places, places, strict=True):
                _set_requires_grad(tensor, place[-1])
                if now[:-1] != place[:-1]:
                    tensor.data = alias
        if not waits and _same_bytes(self._now(), self._bytes):
            return False
        _copy_together([*zip((alias.data for alias in self._aliases), self._copies(), strict=True)])
        return not waits

    def _now_places(self) -> list[tuple[int, torch.Size, tuple[int, ...], bool]]:
        return [(_pointer(tensor), *_form(tensor), tensor.requires_grad) for tensor in self._members]

    def _copies(self) -> list[torch.Tensor]:
        shapes = [alias.shape for alias in self._aliases]
        parts = torch.split(self._bytes, [shape.numel() for shape in shapes])
        return [part.view(shape) for shape, part in zip(shapes, parts, strict=True)]

    def _now(self) -> torch.Tensor:
        # torch.cat takes vectors as they are, which most buffers are
        return torch.cat([alias if alias.dim() == 1 else alias.reshape(-1) for alias in self._aliases])


def copied(tensors: Iterable[torch.Tensor]) -> tuple[list[Group], list[Kept]]:
    """Copy the bytes of each tensor: small plain ones in groups, the others one by one.

    Args:
        tensors: any.
    """
    groups: dict[object, list[torch.Tensor]] = {}
    others = []
    for tensor in tensors:
        if _is_plain(tensor) and tensor.nbytes < SMALL and not _is_expanded(tensor):
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        else:
            kept = Kept(tensor)
            kept.keep()
            others.append(kept)
    return [Group(members) for members in groups.values()], others


def copy_back(changed: Iterable[Kept]) -> None:
    """Write the copies into the memory that they were made of.

    Args:
        changed: the tensors; those without a copy are left alone.
    """
    # through aliases without a version counter of their users: a graph that saved a tensor stays valid
    pairs = [(kept.alias.data, kept.copy) for kept in changed if kept.copy is not None]
    groups: dict[object, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for tensor, copy in pairs:
        if not _is_plain(tensor):
            tensor.copy_(copy)
        elif not _is_expanded(tensor):
            groups.setdefault((tensor.device, tensor.dtype), []).append((tensor, copy))
        else:  # nothing can be written through it, but into one of each elements that share a place
            _unexpanded(tensor, tensor).copy_(_unexpanded(copy, tensor))
    for group in groups.values():  # on CUDA a list of several types is copied one by one
        _copy_together(group)


def _copy_together(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch._foreach_copy_([tensor for tensor, _ in pairs], [copy for _, copy in pairs])


class Seen:
    """How a tensor is, without a copy: enough to tell whether somebody has written it, or bound it anew.

    Args:
        tensor: any but a wrapper.
    """

    __slots__ = ("_pointer", "_requires_grad", "_version", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._version = _version(tensor)
        self._pointer = _pointer(tensor)
        self._requires_grad = tensor.requires_grad

    def is_as_it_was(self) -> bool:
        """Whether nothing has happened to the tensor; that it requires gradients is set right."""
        tensor = self.tensor
        _set_requires_grad(tensor, self._requires_grad)
        return _version(tensor) == self._version and _pointer(tensor) == self._pointer


def size(tensor: torch.Tensor) -> int:
    """How many bytes a tensor holds; sparse ones do not say, and are taken for small.

    Args:
        tensor: any.
    """
    return tensor.nbytes if tensor.layout is torch.strided and not is_lazy(tensor) else 0


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a subclass without storage of its own (torchao's).

    Args:
        tensor: any.
    """
    return type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer)


def _unexpanded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One of each elements that share a place in memory.

    Args:
        tensor: any.
        like: a tensor of the same shape, whose strides say which elements do.
    """
    for axis, (stride, length) in enumerate(zip(like.stride(), like.shape, strict=True)):
        if stride == 0 and length > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided and not is_wrapper(tensor) else id(tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return not (is_wrapper(tensor) or tensor.is_conj() or tensor.is_neg())


def _comparing_waits(tensor: torch.Tensor) -> bool:
    """Whether a comparison would make this thread wait until the device has done all its work. A copy would not."""
    return tensor.is_cuda and not is_wrapper(tensor)


def _form(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    return tensor.shape, tensor.stride() if tensor.layout is torch.strided else ()


def _set_requires_grad(tensor: torch.Tensor, before: bool) -> None:
    """Whether a tensor requires gradients; of one that was written under a graph, that graph is let go."""
    if tensor.requires_grad != before:
        if not tensor.is_leaf:
            tensor.detach_()
        tensor.requires_grad_(before)


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements share one place in memory, so that nothing can be written to them."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True) if tensor.layout is torch.strided else ()
    return any(stride == 0 and size > 1 for stride, size in pairs)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN equals NaN, and -0.0 differs from 0.0."""
    if a.is_complex():
        a, b = (torch.view_as_real(tensor.resolve_conj()) for tensor in (a, b))
    a, b = a.resolve_neg(), b.resolve_neg()
    integer = _SAME_SIZE_INT.get(a.element_size())
    if integer is None or not _is_plain(a):
        return torch.equal(a, b)
    return torch.equal(a.view(integer), b.view(integer))
