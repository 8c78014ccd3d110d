"""What was found below a model, as it was, and how it is put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from cnnlog.capture.contents import bind_again, refill, restore_content, same_content, same_items, set_slot, vars_of


class Before:
    """What was found, as it was: each list holds objects with what they held.

    Attributes:
        attributes: of modules: the module, and its attributes.
        registered: modules' dicts of parameters.
        gradients: parameters, and their gradients.
        empty: containers that held nothing, as most of a module's do.
        contents: containers and arrays.
        objects: dicts of attributes.
        held: objects, and their dicts of attributes themselves.
        classes: modules, and their classes.
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
        self.held: list[tuple[Any, dict[str, Any]]] = []
        self.classes: list[tuple[nn.Module, type]] = []
        self.slots: list[tuple[Any, Any, object]] = []
        self.bound: list[tuple[Any, dict[str, Any]]] = []

    def trains(self) -> bool:
        """Whether a parameter has got another gradient: then forward makes some itself, and may add to others."""
        return any(parameter.grad is not gradient for parameter, gradient in self.gradients)

    def put_back(self, *, registered: bool) -> list[Exception]:
        """Make everything what it was. What is as it was is left alone, so that no guard on it is invalidated.

        Args:
            registered: also modules' parameters that have been bound anew. FSDP2 swaps them in forward itself.

        Returns:
            What went wrong on the way; everything else is put back all the same.
        """
        errors = []
        for function, *arguments in self._steps(registered=registered):
            try:
                function(*arguments)
            except Exception as error:  # of a class that somebody wrote
                errors.append(error)
        return errors

    def _steps(self, *, registered: bool) -> Iterator[tuple[Any, ...]]:
        """What is not as it was: the function that mends it, and what that is given."""
        yield from self._steps_of_modules(registered=registered)
        for container, content in self.contents:
            if not same_content(container, content):
                yield restore_content, container, content
        for thing, own in self.held:
            if vars_of(thing) is not own:
                yield setattr, thing, "__dict__", own
        for held, before in self.objects:
            if not same_items(held, before):
                yield refill, held, before
        yield from ((set_slot, slot, thing, value) for slot, thing, value in self.slots)
        yield from ((bind_again, owner, bound) for owner, bound in self.bound)

    def _steps_of_modules(self, *, registered: bool) -> Iterator[tuple[Any, ...]]:
        for module, cls in self.classes:
            if type(module) is not cls:
                yield setattr, module, "__class__", cls
        for module, attributes in self.attributes:
            if not same_items(module.__dict__, attributes):
                yield refill, module.__dict__, attributes
        for parameters, before in self.registered:
            if registered and not same_items(parameters, before):
                yield partial(refill, in_order=True), parameters, before  # that of the state dict
            elif len(parameters) != len(before):
                yield _drop, parameters, [name for name in parameters if name not in before]
        if any(self.empty):
            yield from ((empty.clear,) for empty in self.empty)
        for parameter, gradient in self.gradients:
            if parameter.grad is not gradient:
                yield setattr, parameter, "grad", gradient


def _drop(parameters: dict[str, Any], names: list[str]) -> None:
    for name in names:
        del parameters[name]
