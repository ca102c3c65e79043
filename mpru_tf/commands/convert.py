"""The commands ``convert ...``; :func:`register` puts them on the command line."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import mpru_tf
from mpru_tf.command_line import JsonOption, add, grid, named, new_group, print_json
from mpru_tf.commands.left_behind import unfiltered_versions, warn_of_what_is_left
from mpru_tf.commands.options import CalibrationOption, ClassMeansOption, ForceOption, Method
from mpru_tf.console import messages, output

if TYPE_CHECKING:
    from mpru_tf.conversion import ConversionResult

_FORGETTING = "Forgetting"


class Backend(str, enum.Enum):
    """What trees are lowered to, as mpru_tf.trees.backends names it."""

    ops = "ops"
    tfdf = "tfdf"


def xgboost(
    model: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What Booster.save_model wrote, JSON or UBJSON.", show_default=False),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="BASE", help="Base path; the model becomes its next version.", show_default=False),
    ],
    backend: Annotated[
        Backend | None,
        typer.Option(
            help="ops: plain TensorFlow operations, which every server has. tfdf: those of TensorFlow Decision "
            "Forests, which stock TensorFlow Serving has as well. Default: ops.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Build both backends, time them with N rows a request, and take the faster one.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labels of the classes: one per line, CSV, or JSON. They stay with the version.",
            show_default=False,
        ),
    ] = None,
    named_inputs: Annotated[
        bool, typer.Option("--named-inputs", help="Also write the signature `named`, with one input per feature.")
    ] = False,
    classify: Annotated[
        bool, typer.Option("--classify", help="Also write the signature `classify`, for serialized tf.Example.")
    ] = False,
    all_trees: Annotated[
        bool, typer.Option("--all-trees", help="Use the trees after the best round of early stopping, too.")
    ] = False,
    skip_self_check: Annotated[
        bool, typer.Option("--skip-self-check", help="Publish without comparing with XGBoost or the reference.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASSES",
            help="Classes to forget, as `forget --classes` takes them. Only the filtered model is published.",
            rich_help_panel=_FORGETTING,
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(metavar="METHOD", help="As of `forget`.", rich_help_panel=_FORGETTING, show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="T", help="Of the method tempered.", rich_help_panel=_FORGETTING, show_default=False
        ),
    ] = None,
    class_means: ClassMeansOption = None,
    calibration: CalibrationOption = None,
    force: ForceOption = False,
    redact_labels: Annotated[
        bool,
        typer.Option(
            "--redact-labels",
            help="Also leave the forgotten labels out of everything in the version.",
            rich_help_panel=_FORGETTING,
        ),
    ] = False,
    skip_load_check: Annotated[
        bool,
        typer.Option(
            "--skip-load-check",
            help="Publish without having loaded and asked the filtered version.",
            rich_help_panel=_FORGETTING,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish an XGBoost classifier as a servable version, with classes forgotten if any are named.

    XGBoost is not needed. Where it is installed, the version is first compared with it, on rows made from the model
    itself, and refused if a probability differs by more than a millionth; else it is compared with the reference. With
    --forget, the unfiltered model never appears in the base path.
    """
    if class_means is not None and calibration is not None:
        raise typer.BadParameter("give class means or calibration data, not both", param_hint="--calibration")
    if backend is not None and batch_size is not None:
        raise typer.BadParameter("name a backend or have the faster one chosen, not both", param_hint="--batch-size")
    with messages().status("converting ...") as status:
        result = mpru_tf.convert_xgboost(
            model,
            out,
            backend=None if backend is None else backend.value,
            batch_size=batch_size,
            named_inputs=named_inputs,
            classify=classify,
            labels=labels,
            all_trees=all_trees,
            self_check=not skip_self_check,
            forget=forget or (),
            method=None if method is None else method.value,
            class_means=class_means,
            calibration=calibration,
            temperature=temperature,
            force=force,
            redact_labels=redact_labels,
            load_check=not skip_load_check,
            progress=lambda step: status.update(f"{step} ..."),
        )
    unfiltered = unfiltered_versions(result.forgotten) if result.forgotten is not None else []
    if as_json:
        print_json({**result.to_dict(), "unfiltered_versions": unfiltered})
    else:
        _show_converted(result, unfiltered)


def _show_converted(result: ConversionResult, unfiltered: Sequence[int]) -> None:
    console = output()
    console.print(f"version {result.version} written", style="bold green", highlight=False)
    table = grid()
    table.add_row("path", str(result.path))
    table.add_row("made from", f"{result.model} ({result.origin}, {result.trees} trees, {result.nodes} nodes)")
    table.add_row("features", escape(_features(result)))
    names = None if result.labels is None else ", ".join(result.labels[:8]) + (", ..." if result.classes > 8 else "")
    table.add_row("classes", str(result.classes) + ("" if names is None else f": {escape(names)}"))
    table.add_row("signatures", ", ".join(result.signatures))
    table.add_row("backend", result.choice)
    table.add_row("self-check", f"{result.self_check['status']}: {result.self_check['detail']}")
    for note in result.notes:
        table.add_row("note", escape(note))
    forgotten = result.forgotten
    if forgotten is not None:
        table.add_row("forgotten", escape(named(forgotten.forgotten, forgotten.labels)))
        table.add_row("method", forgotten.method)
        table.add_row("leak gate", forgotten.leak_gate)
        table.add_row("load check", f"{forgotten.load_check['status']}: {forgotten.load_check['detail']}")
    table.add_row("bytes", f"{result.bytes}")
    of_it = "" if forgotten is None else f", {forgotten.seconds:.3f} of it for forgetting"
    table.add_row("seconds", f"{result.seconds:.3f}{of_it}")
    console.print(table, highlight=False)
    if forgotten is not None:
        warn_of_what_is_left(forgotten, unfiltered)


def _features(result: ConversionResult) -> str:
    """How many features there are, and the first of them by name and type."""
    # As the file has them they could be anything, also what steers a terminal.
    names = ["".join(letter if letter.isprintable() else "?" for letter in name) for name in result.feature_names[:8]]
    named = zip(names, result.feature_types[:8] or ("",) * 8, strict=False)
    shown = ", ".join(f"{name} ({kind})" if kind else name for name, kind in named)
    more = ", ..." if len(result.feature_names) > 8 else ""
    return f"{result.features}: {shown}{more}" if shown else f"{result.features}, without names"


def register(app: typer.Typer) -> None:
    """Put the commands on a command line."""
    plain = "mpru-tf convert xgboost model.json --out models/cover"
    group = new_group("Make a servable version of a tree model's own file.", plain)
    add(
        group,
        xgboost,
        plain,
        f"{plain} --labels labels.txt --forget 'Krummholz,Aspen'",
        "mpru-tf convert xgboost model.ubj --out models/cover --batch-size 256",
        f"{plain} --named-inputs --classify --json",
    )
    app.add_typer(group, name="convert")
