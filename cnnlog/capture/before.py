"""What was found below a model, as it was, and how it is put back in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cnnlog.capture.contents import bind_again, refill, restore_content, same_content, same_items, set_slot


class Before:
    """What was found, as it was: each list holds objects with what they held.

    Attributes:
        attributes: of modules: the module, and its attributes.
        registered: modules' dicts of parameters.
        gradients: parameters, and their gradients.
        empty: containers that held nothing, as most of a module's do.
        contents: containers and arrays.
        objects: dicts of attributes.
        slots: slots, and closures' cells.
        bound: classes, and the variables of files.
    """

    def __init__(self) -> None:
        self.attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self.registered: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.empty: list[Any] = []
        self.contents: list[tuple[Any, Any]] = []
        self.objects: list[tuple[Any, dict[str, Any]]] = []
        self.slots: list[tuple[Any, Any, object]] = []
        self.bound: list[tuple[Any, dict[str, Any]]] = []

    def put_back(self, *, registered: bool) -> None:
        """Make everything what it was. What is as it was is left alone, so that no guard on it is invalidated.

        Args:
            registered: also modules' parameters that have been bound anew. FSDP2 swaps them in forward itself.
        """
        self._put_back_modules(registered=registered)
        if any(self.empty):
            for empty in self.empty:
                empty.clear()
        for container, content in self.contents:
            if not same_content(container, content):
                restore_content(container, content)
        for attributes, before in self.objects:
            if not same_items(attributes, before):
                refill(attributes, before)
        for slot, thing, value in self.slots:
            set_slot(slot, thing, value)
        for owner, bound in self.bound:
            bind_again(owner, bound)
        for parameter, gradient in self.gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def _put_back_modules(self, *, registered: bool) -> None:
        for module, attributes in self.attributes:
            if "training" in attributes:
                module.__dict__["training"] = attributes["training"]
            if not same_items(module.__dict__, attributes):
                refill(module.__dict__, attributes, except_for="_parameters")
        for parameters, before in self.registered:
            if registered and not same_items(parameters, before):
                refill(parameters, before)
            elif len(parameters) != len(before):
                for name in [name for name in parameters if name not in before]:
                    del parameters[name]
