"""The command ``means``; :func:`register` puts it on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mpru_tf.command_line import JsonOption, add, print_json
from mpru_tf.commands.options import ModelArgument
from mpru_tf.console import output

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans


def means(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Option(metavar="FILE.npz", help="Examples x and, if there are any, their classes y.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Where to write the means.", show_default=False)],
    signature: Annotated[
        str | None, typer.Option(metavar="KEY", help="Signature to ask. Default: the serving signature.")
    ] = None,
    output_key: Annotated[
        str | None, typer.Option("--output", metavar="KEY", help="Its output with the class scores.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Examples per step.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Average the model's probabilities over the examples of each class: its class means.

    The data is streamed, so it may be larger than memory. Without y, each example counts for the class that the model
    says it is.
    """
    from mpru_tf.class_means import ClassMeans

    found = ClassMeans.from_saved_model(
        model, data, signature=signature, output=output_key, batch_size=batch_size, progress=True
    )
    found.save(out)
    if as_json:
        print_json(_means_summary(found, out))
    else:
        _show_means(found, out)


def _means_summary(found: ClassMeans, out: Path) -> dict[str, Any]:
    return {
        "path": str(out),
        "classes": found.classes,
        "labelled": found.labelled,
        "rows": [
            {"class": int(c), "examples": int(count), "self_probability": float(own), "variance": float(variance)}
            for c, count, own, variance in zip(
                found.rows, found.counts, found.self_probability, found.variances, strict=True
            )
        ],
    }


def _show_means(found: ClassMeans, out: Path) -> None:
    table = Table("class", "examples", "self-probability", "variance", title=f"{out}", title_style="bold")
    for column in table.columns:
        column.justify = "right"
    for row in _means_summary(found, out)["rows"]:
        table.add_row(
            str(row["class"]), str(row["examples"]), f"{row['self_probability']:.4f}", f"{row['variance']:.4f}"
        )
    console = output()
    console.print(table)
    if not found.labelled:
        console.print("Without labels, each example counted for the class that the model says it is.", style="yellow")


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(
        app,
        means,
        "mpru-tf means models/resnet --data calibration.npz --out means.json",
        "mpru-tf forget models/resnet --classes cat --method gram_schmidt --class-means means.json",
    )
