"""The command ``evaluate``; :func:`register` puts it on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mpru_tf.command_line import add
from mpru_tf.console import output

_MORE = "Compared with"


def evaluate(
    original: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The unfiltered version, or its base path: the newest.", show_default=False),
    ],
    unlearned: Annotated[
        str, typer.Option(metavar="MODEL", help="The version to judge, likewise.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="Labelled test examples: x (or one array per input) and y, or x_test and y_test.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for evaluation.json and report.html.", show_default=False)
    ],
    train_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Labelled examples that the original was trained on, for membership inference and class means. "
            "Default: x_train and y_train of the test examples' file.",
            show_default=False,
        ),
    ] = None,
    retrained: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE.npz",
            help="A model that never saw the forgotten classes, or a file of its answers [N, n].",
            rich_help_panel=_MORE,
            show_default=False,
        ),
    ] = None,
    second_retrained: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE.npz",
            help="Another one, of another seed: how far two retrained models are apart.",
            rich_help_panel=_MORE,
            show_default=False,
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="Another way to forget, for the same table; may be repeated.",
            rich_help_panel=_MORE,
            show_default=False,
        ),
    ] = None,
    class_means: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Class means that `mpru-tf means` wrote. Default: taken from the training examples, or else from the "
            "test examples.",
            rich_help_panel=_MORE,
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASSES",
            help="The forgotten classes, if UNLEARNED has no manifest that tells.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels of the classes. Default: those of ORIGINAL.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json in place of the table.")] = False,
) -> None:
    """Judge a version that forgets classes: how near is it to a model that never saw them, and can an attacker tell?

    Leaves a report that people can look at, one file that needs nothing beside itself, and its figures as JSON. An
    accuracy of 0 on a forgotten class proves nothing, as a filter makes it so: give a retrained model, or its answers.
    """
    from mpru_tf.evaluation import evaluate as judging
    from mpru_tf.evaluation.report import page, verdict, without_twin

    evaluation = judging.evaluate(
        original,
        unlearned,
        data,
        retrained=retrained,
        second_retrained=second_retrained,
        train_data=train_data,
        candidates=_candidates(candidate or ()),
        class_means=class_means,
        classes=classes or (),
        labels=labels,
        progress=True,
    )
    _, report = judging.write(evaluation, page(evaluation), out)
    if as_json:
        typer.echo(judging.to_json(evaluation), nl=False)
    else:
        _show(evaluation, verdict(without_twin(evaluation)), report)
    if show:
        typer.launch(str(report))


def _candidates(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, model = one.partition("=")
        if not (name and equals and model) or name in found:
            raise typer.BadParameter("give NAME=MODEL, each name once", param_hint="--candidate")
        found[name] = model
    return found


def _show(evaluation: Mapping[str, Any], sentences: Sequence[str], report: Path) -> None:
    console = output()
    console.print(escape(sentences[0]), style="bold", highlight=False)
    table = Table("answers", "KL forgotten", "KL retained", "accuracy retained", "accuracy forgotten")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in evaluation["answers"].items():
        apart = [None if one[part] is None else one[part]["kl"] for part in ("forgotten", "retained")]
        values = [*apart, one["accuracy_retained"], one["accuracy_forgotten"]]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        table.add_row(escape(name), *cells, style="bold" if name == "unlearned" else None)
    floor = evaluation["floor"]
    if floor is not None:
        cells = ["" if floor[part] is None else f"{floor[part]['kl']:.4f}" for part in ("forgotten", "retained")]
        table.add_row("(two retrained models)", *cells, "", "", style="dim")
    console.print(table, highlight=False)
    console.print(f"report: {escape(str(report))}", highlight=False, soft_wrap=True)


_EXAMPLES = (
    "mpru-tf evaluate --original models/resnet/1 --unlearned models/resnet/2 --data test.npz --out evaluation",
    "mpru-tf evaluate --original models/resnet/1 --unlearned models/resnet/2 --retrained retrained/resnet "
    "--data test.npz --train-data train.npz --out evaluation --open",
)


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(app, evaluate, *_EXAMPLES)
