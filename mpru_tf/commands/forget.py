"""The command ``forget``; :func:`register` puts it on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import mpru_tf
from mpru_tf.command_line import JsonOption, add, grid, named, print_json, working
from mpru_tf.commands.left_behind import unfiltered_versions, warn_of_what_is_left
from mpru_tf.commands.options import (
    CalibrationOption,
    ClassMeansOption,
    ForceOption,
    Method,
    ModelArgument,
    MultiLabelOption,
    NumClassesOption,
    OutputOption,
    ScoresOption,
    SiteOption,
)
from mpru_tf.console import output

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans
    from mpru_tf.reexport import ForgetResult

LabelsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Labels of the classes: one per line, CSV, or JSON. Default: those found with or in the model.",
        show_default=False,
    ),
]


def forget(
    model: ModelArgument,
    classes: Annotated[
        list[str],
        typer.Option(
            metavar="CLASSES",
            help="Classes to forget: indices or labels, separated by commas; may be repeated. "
            "index:3 and label:3 tell the two apart.",
            show_default=False,
        ),
    ],
    labels: LabelsOption = None,
    method: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD",
            help="tempered or renormalize, which need no data; gram_schmidt or mean, which need class means; mask, for "
            "multi-label models. Default: that of the version's present filter, or tempered.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="T",
            help="Of the method tempered, at least 1. Default: that of the version's present filter, or 1.5.",
            show_default=False,
        ),
    ] = None,
    class_means: ClassMeansOption = None,
    calibration: CalibrationOption = None,
    force: ForceOption = False,
    output_names: OutputOption = None,
    sites: SiteOption = None,
    scores: ScoresOption = None,
    num_classes: NumClassesOption = None,
    multi_label: MultiLabelOption = False,
    allow_output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIG:KEY",
            help="Keep an output although it is computed before the class scores (an embedding); may be repeated.",
            rich_help_panel="Outputs",
            show_default=False,
        ),
    ] = None,
    drop_output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIG:KEY",
            help="Remove an output from its signature; may be repeated.",
            rich_help_panel="Outputs",
            show_default=False,
        ),
    ] = None,
    redact_labels: Annotated[
        bool,
        typer.Option(
            "--redact-labels",
            help="Also remove the forgotten labels themselves from everything in the new version: constants, tables, "
            "assets, manifest. Refused where that cannot be done.",
        ),
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE",
            help="Base path for the new version. Default: that of MODEL.",
            rich_help_panel="Publishing",
            show_default=False,
        ),
    ] = None,
    warmup: Annotated[
        str,
        typer.Option(
            metavar="keep|none|auto|FILE",
            help="Warm-up requests of the new version: keep those it would inherit, none, auto (made up from the "
            "signatures), or a file: examples (.npz, .npy, .json as REST takes it) or recorded requests (TFRecords of "
            "PredictionLog). Each is replayed before the version is published.",
            rich_help_panel="Publishing",
        ),
    ] = "keep",
    warmup_batch_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...|FILE",
            help="Examples in a warm-up request, or the server's batching parameters file: then 1 and its allowed "
            "sizes. Default: 1; recorded requests stay as they are.",
            rich_help_panel="Publishing",
            show_default=False,
        ),
    ] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="Copy the weights in place of sharing their bytes with the source version.",
            rich_help_panel="Publishing",
        ),
    ] = False,
    skip_load_check: Annotated[
        bool,
        typer.Option(
            "--skip-load-check",
            help="Publish without having loaded and asked the new version.",
            rich_help_panel="Publishing",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Do everything but write; say what would be written.", rich_help_panel="Publishing"
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the next version of a served model, in which no output answers the given classes.

    An unlearning filter is baked into the graph where the class scores arise; signatures, weights and assets stay as
    they are, and the version appears in the base path with one rename. TensorFlow Serving swaps to it by itself.
    """
    if class_means is not None and calibration is not None:
        raise typer.BadParameter("give class means or calibration data, not both", param_hint="--calibration")
    given: ClassMeans | Path | None = class_means
    if calibration is not None:
        from mpru_tf.class_means import ClassMeans

        given = ClassMeans.from_saved_model(model, calibration, progress=True)
    if not skip_load_check and not dry_run:
        from mpru_tf.worker import prepare

        prepare()  # it imports TensorFlow while this process does
    _load_tensorflow()
    with working("re-exporting"):
        result = mpru_tf.forget(
            model,
            classes,
            method=None if method is None else method.value,
            class_means=given,
            temperature=temperature,
            labels=labels,
            into=into,
            outputs=output_names or (),
            sites=sites or (),
            scores=None if scores is None else scores.value,
            num_classes=num_classes,
            multi_label=multi_label,
            allow_outputs=allow_output or (),
            drop_outputs=drop_output or (),
            force=force,
            redact_labels=redact_labels,
            warmup=warmup,
            warmup_batch_sizes=warmup_batch_sizes,
            copy=copy,
            load_check=not skip_load_check,
            dry_run=dry_run,
        )
    unfiltered = unfiltered_versions(result)
    if as_json:
        print_json({**result.to_dict(), "unfiltered_versions": unfiltered})
    else:
        _show_forgotten(result, unfiltered)


def _load_tensorflow() -> None:
    """Import TensorFlow now, so that it does not count as part of what is timed."""
    with working("loading TensorFlow"):
        import_module("tensorflow")


def _show_forgotten(result: ForgetResult, unfiltered: Sequence[int]) -> None:
    from mpru_tf.warmup_plan import KEEP, describe

    console = output()
    if result.already_forgotten:
        headline = f"version {result.version} forgets all of this already; nothing was written"
    elif result.dry_run:
        headline = f"dry run: version {result.version} would be written, and nothing was"
    else:
        headline = f"version {result.version} written"
    console.print(headline, style="bold green", highlight=False)
    table = grid()
    table.add_row("path", str(result.path))
    table.add_row("made from", str(result.source))
    table.add_row("forgotten", f"{named(result.forgotten, result.labels)} of {result.classes} classes")
    table.add_row("method", result.method)
    table.add_row("class scores", result.score_site)
    table.add_row("filtered", ", ".join(result.outputs))
    if result.dropped_outputs:
        table.add_row("dropped", ", ".join(result.dropped_outputs))
    if result.dropped_endpoints:
        table.add_row("endpoints gone", ", ".join(result.dropped_endpoints))
    table.add_row("leak gate", result.leak_gate)
    table.add_row("load check", f"{result.load_check['status']}: {result.load_check['detail']}")
    if result.warmup is not None and (result.warmup["mode"] != KEEP or result.warmup["records"]):
        table.add_row("warm-up", escape(describe(result.warmup)))
    if result.files is not None:
        table.add_row("files", result.files)
    checked = f", and {result.seconds_load_check:.3f} for the load check" if result.seconds_load_check else ""
    table.add_row("seconds", f"{result.seconds:.3f}{checked}")
    console.print(table, highlight=False)
    warn_of_what_is_left(result, unfiltered)


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(
        app,
        forget,
        "mpru-tf forget models/resnet --classes cat",
        "mpru-tf forget models/resnet --classes 3,7 --dry-run",
        "mpru-tf forget models/resnet --classes cat --method gram_schmidt --calibration calibration.npz",
        "mpru-tf forget models/faces --classes 'Alice Example' --redact-labels",
        "mpru-tf forget models/resnet --classes cat --warmup auto --warmup-batch-sizes 1,8,32",
        "mpru-tf forget models/resnet/1 --classes 3 --into staging/resnet --drop-output serving_default:embedding",
    )
