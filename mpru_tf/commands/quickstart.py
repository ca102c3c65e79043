"""The command ``quickstart``; :func:`register` puts it on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpru_tf.command_line import JsonOption, add, print_json, refuse
from mpru_tf.console import output


def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model, the picture and the results.")] = (
        Path("quickstart_output")
    ),
    forget_class: Annotated[str, typer.Option("--forget", metavar="DIGIT", help="The digit to forget.")] = "3",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training data.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, order and augmentation.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train, serve, forget while clients ask, and show what happened: the whole thing in under three minutes.

    A small ResNet learns the digits that ship with scikit-learn and is served over gRPC. While a plain client asks it
    without a pause, one digit is forgotten into version 2. Exit status 1 if a request failed, or if the digit was seen
    again.
    """
    from mpru_tf import quickstart as steps

    results = steps.run(out, forget=forget_class, epochs=epochs, seed=seed)
    if as_json:
        print_json(results.to_dict())
    else:
        steps.show(results, output())
    if results.problems:
        refuse(" ".join(results.problems))


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(app, quickstart, "mpru-tf quickstart", "mpru-tf quickstart --forget 8 --out eight")
