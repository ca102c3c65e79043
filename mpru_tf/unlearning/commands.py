"""The command `unsir`; :func:`register` puts it on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mpru_tf.command_line import JsonOption, add, grid, print_json, working
from mpru_tf.console import messages, output
from mpru_tf.errors import DataError, explain
from mpru_tf.unlearning.config import Preset

if TYPE_CHECKING:
    from mpru_tf.unlearning.publishing import Published
    from mpru_tf.unlearning.unsir import UnsirResult

_TRAINING, _PUBLISHING = "Training", "Publishing"
_EXAMPLES_COMPARED = 8


def unsir(
    model: Annotated[Path, typer.Argument(metavar="MODEL.keras", help="A whole Keras 3 model.", show_default=False)],
    classes: Annotated[
        list[str],
        typer.Option(
            metavar="CLASSES", help="Classes to forget, as `forget --classes` takes them.", show_default=False
        ),
    ],
    retain_data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            help="Examples x as the model takes them, and their classes y, of the classes that stay.",
            show_default=False,
        ),
    ],
    into: Annotated[
        Path,
        typer.Option(metavar="BASE", help="Base path; the model becomes its next version.", show_default=False),
    ],
    then_filter: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Also bake in a filter, so that the forgotten classes answer exactly 0: tempered or renormalize.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=1.0, metavar="T", help="Of the filter tempered.", show_default=False),
    ] = None,
    redact_labels: Annotated[
        bool, typer.Option("--redact-labels", help="As of `forget`; takes --then-filter.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labels of the classes: one per line, CSV, or JSON. They stay with the version.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="gentle: much lower learning rates. paper: the settings of UNSIR's authors, which can ruin a small "
            "network.",
            rich_help_panel=_TRAINING,
        ),
    ] = Preset.gentle,
    test_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Examples x and y, forgotten classes included, to take accuracies on. Default: those trained on.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    retained_floor: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Least accuracy on retained classes: impair stops below it, repair always runs in full, and nothing "
            "is published that ends below it. Default: 0.8 of the accuracy before, looked at in the end only.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="N",
            help="Of noise, choice and order of examples, and dropout.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write the loss of each step there.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write it there for TensorBoard.", rich_help_panel=_TRAINING, show_default=False
        ),
    ] = None,
    out_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.keras",
            help="Also save the unlearned Keras model; a file that exists is not replaced.",
            rich_help_panel=_PUBLISHING,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a Keras model forget classes in its weights (UNSIR), and publish it as the next version of a base path.

    For those who must hand out the file. No example of a forgotten class is needed, only some of those that stay.

    Weights guarantee nothing about answers: without --then-filter the forgotten classes keep their scores, may be
    predicted now and then, and neither `verify` nor `audit` counts them as forgotten.
    """
    from mpru_tf.labels import parse_classes, read_labels
    from mpru_tf.unlearning import publishing
    from mpru_tf.unlearning.history import check_history_places
    from mpru_tf.unlearning.places import check_file, check_folder
    from mpru_tf.unlearning.reading import read_keras
    from mpru_tf.unlearning.scores import count_classes
    from mpru_tf.unlearning.unsir import unsir as unlearn
    from mpru_tf.versions import target_base_path

    # Whatever can be refused is refused before minutes are spent.
    publishing.check_filter(then_filter, temperature, redact_labels)
    base = target_base_path(into)
    check_folder(base, "the new version")
    if out_model is not None:
        if out_model.exists() or out_model.suffix != ".keras":
            raise typer.BadParameter("a new file FILE.keras", param_hint="--out-model")
        check_file(out_model, "the Keras model")
    check_history_places(history, tensorboard)
    names = None if labels is None else read_labels(labels)
    with working("loading the model"):
        retained = _examples(retain_data)
        tested = None if test_data is None else _examples(test_data)
        loaded = read_keras(
            model,
            "a whole model, as `model.save('FILE.keras')` of Keras 3 writes it",
            "A model with custom layers can be unlearned from Python, with mpru_tf.unsir.",
        )
    forgotten = parse_classes(classes, names, count_classes(loaded))
    publishing.check_classes_stay_gone(base, forgotten, then_filter)
    result = unlearn(
        loaded,
        classes,
        retained,
        preset.config(seed=seed, retained_floor=retained_floor),
        labels=names,
        validation=tested,
        in_place=True,  # nobody else holds it
        progress=True,
        history_csv=history,
        tensorboard=tensorboard,
    )
    publishing.check_retained(result)
    with working("publishing"), publishing.saved(result.model, out_model):
        published = publishing.publish_unlearned(
            result,
            base,
            retained[0][:_EXAMPLES_COMPARED],
            labels=names,
            source=model,
            then_filter=then_filter,
            temperature=temperature,
            redact_labels=redact_labels,
        )
    remarks = publishing.remarks(result, then_filter)
    if as_json:
        values = {
            **result.to_dict(),
            **published.to_dict(),
            "seconds": {**result.seconds, "publish": published.seconds},
        }
        print_json({**values, "model": None if out_model is None else str(out_model), "remarks": remarks})
    else:
        show(result, published, names)
    for remark in remarks:
        messages().print(remark, style="yellow", highlight=False, soft_wrap=True)


def _examples(path: Path) -> tuple[Any, Any]:
    """Arrays x and y of an .npz file.

    Raises:
        DataError: there are none.
    """
    from mpru_tf.array_files import read_arrays

    valid = "an .npz file with arrays x [N, ...] and y int [N]"
    found = read_arrays(path, valid, ("x", "y"))
    if len(found) < 2:
        has = ", ".join(found) or "neither"
        raise DataError(explain("The data must have x and y.", received=f"{path} with {has}", valid=valid))
    return found["x"], found["y"]


def show(result: UnsirResult, published: Published, labels: Any) -> None:
    """Print what was done, and what it does not protect."""
    console = output()
    console.print(f"version {published.version} written", style="bold green", highlight=False)
    rows = grid()
    shown = (str(c) if labels is None else f"{c} ({labels[c]})" for c in result.forgotten)
    rows.add_row("path", escape(str(published.path)))
    rows.add_row("unlearned", f"{escape(', '.join(shown))} of {result.classes} classes")
    done = published.filtered
    if done is None:
        rows.add_row("filter", "none")
    else:
        rows.add_row("filter", f"{done.method}; leak gate {done.leak_gate}; load check {done.load_check['status']}")
    rows.add_row("steps", ", ".join(f"{phase} {steps}" for phase, steps in result.steps.items()))
    rows.add_row("seconds", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items()))
    console.print(rows, highlight=False)
    accuracies = Table("accuracy of the weights", "retained", "forgotten", title=f"on {result.measured_on} examples")
    for name, found in (("before", result.before), ("after impair", result.impaired), ("after repair", result.after)):
        forgotten = "not measured" if found.forgotten is None else f"{found.forgotten:.4f}"
        accuracies.add_row(name, f"{found.retained:.4f}", forgotten)
    console.print(accuracies, highlight=False)
    if done is None:
        note = (
            "The weights were changed, and nothing holds an answer back: the forgotten classes keep their scores and "
            "may still be predicted. --then-filter makes them answer exactly 0."
        )
    else:
        note = "The filter protects the answers, whatever the weights still hold."
    console.print(f"\n{note}", style="dim")


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    examples = (
        "mpru-tf unsir resnet.keras --classes cat --labels labels.txt --retain-data retain.npz --into models/resnet",
        "mpru-tf unsir resnet.keras --classes 0,2 --retain-data retain.npz --test-data test.npz --preset gentle "
        "--into models/resnet --then-filter tempered --out-model unlearned.keras",
    )
    add(app, unsir, *examples)
