"""The commands ``verify`` and ``history``; :func:`register` puts them on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

import mpru_tf
from mpru_tf.command_line import JsonOption, add, print_json, refuse, working
from mpru_tf.commands.options import ModelArgument
from mpru_tf.console import output

if TYPE_CHECKING:
    from mpru_tf.verification import Verification


def verify(
    version_dir: Annotated[
        str, typer.Argument(metavar="VERSION_DIR", help="A version that forgets classes.", show_default=False)
    ],
    full: Annotated[bool, typer.Option("--full", help="Also read every byte of the weights.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a filtered version against its manifest, its graph and its answers.

    Exit status 1 if a check fails.
    """
    from mpru_tf.worker import prepare

    prepare()  # it imports TensorFlow while this process reads
    with working("verifying"):
        verification = mpru_tf.verify(version_dir, full=full)
    if as_json:
        print_json(verification.to_dict())
    else:
        _show_verification(verification)
    if not verification.passed:
        failed = [f"{check.name}: {check.detail}" for check in verification.checks if check.passed is False]
        refuse(f"{verification.path} does not do what its manifest says. {'; '.join(failed)}.")


def _show_verification(verification: Verification) -> None:
    words = {True: "[green]passed[/green]", False: "[bold red]failed[/bold red]", None: "[yellow]skipped[/yellow]"}
    table = Table("check", "", "what was seen", title=str(verification.path), title_style="bold")
    for check in verification.checks:
        table.add_row(check.name, words[check.passed], escape(check.detail))
    output().print(table)


def history(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Tell what was forgotten in a model when, and hold each version that is still there against its digests.

    Exit status 1 if a digest does not match or the manifests contradict each other.
    """
    from mpru_tf import lineage

    found = mpru_tf.history(model)
    if as_json:
        print_json(found.to_dict())
    else:
        lineage.show(found, output())
    if not found.verified:
        refuse(f"The history of {found.path} does not hold. {'; '.join(found.problems)}.")


def register(app: typer.Typer) -> None:
    """Put the commands on a command line."""
    add(app, verify, "mpru-tf verify models/resnet/2", "mpru-tf verify models/resnet/2 --full --json")
    add(app, history, "mpru-tf history models/resnet", "mpru-tf history models/resnet/3 --json")
