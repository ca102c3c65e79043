"""What the modules of commands share: how a command is added, shows that it works, prints JSON, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from mpru_tf.console import messages
from mpru_tf.errors import MPRUError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the tables.")]


class RefusingGroup(TyperGroup):
    """Turns what the API refuses into one paragraph on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MPRUError as error:
            refuse(str(error))
        except BrokenPipeError:
            raise  # whoever read our output has gone; click ends quietly
        except OSError as error:
            refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        except KeyboardInterrupt:
            messages().print("interrupted", style="yellow")
            raise typer.Exit(INTERRUPTED) from None


def refuse(reason: str) -> NoReturn:
    """Say why not, and end the command with exit status 1."""
    # One line however long: what reads a log file must not have to join lines, and terminals wrap on their own.
    messages().print(Text.assemble(("refused: ", "bold red"), " ".join(reason.split())), soft_wrap=True)
    raise typer.Exit(1)


def add(
    group: typer.Typer,
    function: Callable[..., Any],
    *examples: str,
    name: str | None = None,
    cls: type[TyperCommand] | None = None,
) -> None:
    """Make a function a command, with its docstring and examples as help.

    Args:
        group: the command line, or a group of commands on it.
        function: what the command does; typer makes its options of the parameters.
        examples: command lines.
        name: of the command. Default: that of the function.
        cls: the kind of command, where it is not the usual one.
    """
    group.command(name, cls=cls, help=lay_out_help(function.__doc__, *examples))(function)


def new_group(text: str, *examples: str) -> typer.Typer:
    """Return an empty group of commands, which shows its help when none of them is named."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=lay_out_help(text, *examples))


def lay_out_help(text: str | None, *examples: str) -> str:
    """Lay out the help of a command: paragraphs as they are in a docstring, then examples, one per line."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n")]
    commands = (f"  [cyan]$ {escape(example)}[/cyan]" for example in examples)
    return "\n\n".join([*paragraphs, "\n".join(["[bold not dim]Examples[/bold not dim]", *commands])])


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is going on, where somebody is looking."""
    with messages().status(f"{what} ..."):
        yield


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def grid() -> Table:
    """Return an empty table without lines: what it is, and its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def named(indices: Sequence[int], labels: Sequence[str] | None) -> str:
    """Return classes in words; labels are those of the indices, in their order."""
    if labels is None:
        return ", ".join(map(str, indices))
    return ", ".join(f"{index} ({label})" for index, label in zip(indices, labels, strict=True))
