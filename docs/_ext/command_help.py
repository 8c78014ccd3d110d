"""The directive `command-help`: what `cnnlog COMMAND --help` says of one command, as a part of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from cnnlog.cli.app import app as cnnlog_app


class CommandHelp(SphinxDirective):
    """`:::{command-help} show filters`: usage, what the command does, and each argument and option."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The nodes that stand in the directive's place."""
        command = _command(self.arguments[0].split())
        usage = " ".join(["cnnlog", self.arguments[0], *_usage(command)])
        made: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        made += self.parse_text_to_nodes(command.help)
        rows = nodes.definition_list()
        for name, text in _explained(command):
            term = nodes.term("", "", nodes.literal(text=name))
            rows += nodes.definition_list_item("", term, nodes.definition("", *self.parse_text_to_nodes(text)))
        return [*made, rows]


def _command(words: list[str]) -> Any:
    """A command by its words, such as `["show", "filters"]`; KeyError if there is none."""
    command: Any = get_command(cnnlog_app)
    for word in words:
        command = command.commands[word]
    return command


def _usage(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield _typed(parameter)
        elif parameter.required:
            yield f"{parameter.opts[0]} {parameter.name.upper()}"
    yield "[OPTIONS]"


def _explained(command: Any) -> Iterator[tuple[str, str]]:
    """Each argument and option as one types it, and what it is for."""
    hints = get_type_hints(command.callback)
    for parameter in command.params:
        text = [re.sub(r"(?<![`\w])--[\w-]+", r"`\g<0>`", parameter.help or "")]
        if choices := _choices(hints[parameter.name]):
            text.append(f"One of {', '.join(f'`{choice}`' for choice in choices)}.")
        if not parameter.required and not any(parameter.default is nothing for nothing in (None, False)):
            text.append(f"Default: `{parameter.default}`.")
        yield _typed(parameter), " ".join(text)


def _choices(hint: Any) -> list[Any]:
    """What a `Literal`, or `Literal | None`, allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) if get_origin(part) is Literal for choice in get_args(part)]


def _typed(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return ", ".join([*parameter.opts, *parameter.secondary_opts])
    name = parameter.metavar or parameter.name.upper()
    return f"{name}..." if parameter.nargs == -1 and not name.endswith("...") else str(name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
