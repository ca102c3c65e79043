"""Arguments and options that several commands have."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Method(str, enum.Enum):
    """The filter's methods, as mpru_tf.filters names them."""

    tempered = "tempered"
    renormalize = "renormalize"
    gram_schmidt = "gram_schmidt"
    mean = "mean"
    mask = "mask"


class Scores(str, enum.Enum):
    """What class scores hold, as mpru_tf.saved_model.candidates names it."""

    probabilities = "probabilities"
    logits = "logits"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A version directory, or a base path: then its newest version.", show_default=False
    ),
]
_PANEL = "Class scores, where the graph leaves them open"
OutputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        metavar="SIG:KEY",
        help="An output computed from the class scores that are meant, if the model has several; may be repeated.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
SiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        metavar="TENSOR",
        help="The tensor that holds them, as `inspect` names it; may be repeated.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
ScoresOption = Annotated[
    Scores | None,
    typer.Option(help="What they hold.", rich_help_panel=_PANEL, show_default=False),
]
NumClassesOption = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="How many classes there are.", rich_help_panel=_PANEL, show_default=False),
]
MultiLabelOption = Annotated[
    bool,
    typer.Option(
        "--multi-label",
        help="Each class is judged on its own, by a Sigmoid: forgotten ones answer 0, the others stay as they are.",
        rich_help_panel=_PANEL,
    ),
]
ClassMeansOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="Class means that `mpru-tf means` wrote.",
        rich_help_panel="Class means",
        show_default=False,
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npz",
        help="Examples x and classes y to take class means from now.",
        rich_help_panel="Class means",
        show_default=False,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Go on although the class means do not meet the preconditions.",
        rich_help_panel="Class means",
    ),
]
