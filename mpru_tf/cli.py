"""The command line, ``mpru-tf``: a thin shell around the public Python API.

Exit status: 0 done; 1 refused, with one paragraph on stderr that says why; 2 wrong usage; 3 `audit` found something;
130 interrupted. What was asked for goes to stdout, everything else to stderr. TensorFlow is imported by the commands
that need it, not before.
"""

from __future__ import annotations

import enum
import gc
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from typer.core import TyperCommand, TyperGroup

import mpru_tf
from mpru_tf.console import hush_tensorflow, messages, output
from mpru_tf.errors import MPRUError
from mpru_tf.evaluation import commands as evaluation
from mpru_tf.operations import commands as operations
from mpru_tf.serving.command_line import ServeCommand, is_on, split, with_signature
from mpru_tf.unlearning import commands as unlearning

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans
    from mpru_tf.conversion import ConversionResult
    from mpru_tf.inspection import Inspection
    from mpru_tf.reexport import ForgetResult
    from mpru_tf.verification import Verification

Command = TypeVar("Command", bound=Callable[..., Any])

_INTERRUPTED = 130


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


class Backend(str, enum.Enum):
    """What trees are lowered to, as mpru_tf.trees.backends names it."""

    ops = "ops"
    tfdf = "tfdf"


class RefusingGroup(TyperGroup):
    """Turns what the API refuses into one paragraph on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MPRUError as error:
            _refuse(str(error))
        except BrokenPipeError:
            raise  # whoever read our output has gone; click ends quietly
        except OSError as error:
            _refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        except KeyboardInterrupt:
            messages().print("interrupted", style="yellow")
            raise typer.Exit(_INTERRUPTED) from None


def _refuse(reason: str) -> None:
    # One line however long: what reads a log file must not have to join lines, and terminals wrap on their own.
    messages().print(Text.assemble(("refused: ", "bold red"), " ".join(reason.split())), soft_wrap=True)
    raise typer.Exit(1)


def _help(text: str | None, *examples: str) -> str:
    """Lay out the help of a command: paragraphs as they are in a docstring, then examples, one per line."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n")]
    commands = (f"  [cyan]$ {escape(example)}[/cyan]" for example in examples)
    return "\n\n".join([*paragraphs, "\n".join(["[bold not dim]Examples[/bold not dim]", *commands])])


app = typer.Typer(
    name="mpru-tf",
    cls=RefusingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
    help=_help(
        """Make a classifier that TensorFlow Serving serves forget classes, by writing its next version.

        TensorFlow's own log stays off the terminal; TF_CPP_MIN_LOG_LEVEL=0 brings it back.""",
        "mpru-tf quickstart",
        "mpru-tf inspect models/resnet",
        "mpru-tf forget models/resnet --classes cat",
    ),
)


convert = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=_help(
        """Make a servable version of a tree model's own file.""",
        "mpru-tf convert xgboost model.json --out models/cover",
    ),
)


def _command(
    *examples: str, group: typer.Typer = app, cls: type[TyperCommand] | None = None
) -> Callable[[Command], Command]:
    """Register a function as a command, with examples in its help."""

    def register(function: Command) -> Command:
        return group.command(cls=cls, help=_help(function.__doc__, *examples))(function)

    return register


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A version directory, or a base path: then its newest version.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the tables.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Labels of the classes: one per line, CSV, or JSON. Default: those found with or in the model.",
        show_default=False,
    ),
]


_PANEL = "Class scores, where the graph leaves them open"
_FORGETTING = "Forgetting"
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


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mpru-tf {mpru_tf.__version__}")
        raise typer.Exit


# --------------------------------------------------------------------------------------------------------- reading
@_command(
    "mpru-tf inspect models/resnet",
    "mpru-tf inspect models/resnet/2 --json | jq '.score_sites[].outputs'",
    "mpru-tf inspect models/tagger --multi-label",
)
def inspect(
    model: ModelArgument,
    output_names: OutputOption = None,
    sites: SiteOption = None,
    scores: ScoresOption = None,
    num_classes: NumClassesOption = None,
    multi_label: MultiLabelOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a SavedModel answers, where its class scores are, and what was forgotten in it.

    From each output the graph is followed back; every tensor at which that ends is shown, with what was made of it.
    Nothing is executed and nothing is written. Exit status 1 if no class can be forgotten in the model as it stands.
    """
    with _working("reading the model"):
        inspection = mpru_tf.inspect(
            model,
            outputs=output_names or (),
            sites=sites or (),
            scores=None if scores is None else scores.value,
            num_classes=num_classes,
            multi_label=multi_label,
        )
    if as_json:
        _print_json(inspection.to_dict())
    else:
        _show_inspection(inspection)
    if inspection.refusal is not None:
        _refuse(inspection.refusal)


@_command(
    "mpru-tf means models/resnet --data calibration.npz --out means.json",
    "mpru-tf forget models/resnet --classes cat --method gram_schmidt --class-means means.json",
)
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
        _print_json(_means_summary(found, out))
    else:
        _show_means(found, out)


@_command("mpru-tf verify models/resnet/2", "mpru-tf verify models/resnet/2 --full --json")
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
    with _working("verifying"):
        verification = mpru_tf.verify(version_dir, full=full)
    if as_json:
        _print_json(verification.to_dict())
    else:
        _show_verification(verification)
    if not verification.passed:
        failed = [f"{check.name}: {check.detail}" for check in verification.checks if check.passed is False]
        _refuse(f"{verification.path} does not do what its manifest says. {'; '.join(failed)}.")


@_command("mpru-tf history models/resnet", "mpru-tf history models/resnet/3 --json")
def history(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Tell what was forgotten in a model when, and hold each version that is still there against its digests.

    Exit status 1 if a digest does not match or the manifests contradict each other.
    """
    from mpru_tf import lineage

    found = mpru_tf.history(model)
    if as_json:
        _print_json(found.to_dict())
    else:
        lineage.show(found, output())
    if not found.verified:
        _refuse(f"The history of {found.path} does not hold. {'; '.join(found.problems)}.")


# --------------------------------------------------------------------------------------------------------- writing
@_command(
    "mpru-tf forget models/resnet --classes cat",
    "mpru-tf forget models/resnet --classes 3,7 --dry-run",
    "mpru-tf forget models/resnet --classes cat --method gram_schmidt --calibration calibration.npz",
    "mpru-tf forget models/faces --classes 'Alice Example' --redact-labels",
    "mpru-tf forget models/resnet --classes cat --warmup auto --warmup-batch-sizes 1,8,32",
    "mpru-tf forget models/resnet/1 --classes 3 --into staging/resnet --drop-output serving_default:embedding",
)
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
    with _working("re-exporting"):
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
    unfiltered = _unfiltered_versions(result)
    if as_json:
        _print_json({**result.to_dict(), "unfiltered_versions": unfiltered})
    else:
        _show_forgotten(result, unfiltered)


@_command(
    "mpru-tf convert xgboost model.json --out models/cover",
    "mpru-tf convert xgboost model.json --out models/cover --labels labels.txt --forget 'Krummholz,Aspen'",
    "mpru-tf convert xgboost model.ubj --out models/cover --batch-size 256",
    "mpru-tf convert xgboost model.json --out models/cover --named-inputs --classify --json",
    group=convert,
)
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
    unfiltered = _unfiltered_versions(result.forgotten) if result.forgotten is not None else []
    if as_json:
        _print_json({**result.to_dict(), "unfiltered_versions": unfiltered})
    else:
        _show_converted(result, unfiltered)


app.add_typer(convert, name="convert")


# --------------------------------------------------------------------------------------------------------- serving
@_command(
    "mpru-tf serve --port=8500 --rest_api_port=8501 --model_name=resnet --model_base_path=/models/resnet",
    "mpru-tf serve --model_config_file=models.config --model_config_file_poll_wait_seconds=10",
    "curl -d '{\"instances\": [[0.1, 0.2]]}' localhost:8501/v1/models/resnet:predict",
    cls=ServeCommand,
)
@with_signature
def serve(**given: Any) -> None:
    """Serve models as TensorFlow Serving does, for development: same flags, same gRPC and REST interfaces.

    It stands in for tensorflow_model_server where there is no Docker. In production, use the real one.
    """
    options, without_effect = split(given)
    if is_on("version", given["version"]):
        import tensorflow as tf

        typer.echo(f"TensorFlow ModelServer: mpru_tf {mpru_tf.__version__}\nTensorFlow Library: {tf.__version__}")
        return
    if not options["model_base_path"] and not options["model_config_file"]:
        raise typer.BadParameter("one of --model_base_path and --model_config_file is needed")
    # SIGTERM is how init systems and `docker stop` ask for an orderly end; the server finishes what it is answering.
    signal.signal(signal.SIGTERM, _terminate)
    from mpru_tf.serving.server import ModelServer

    handler = RichHandler(console=messages(), show_path=False, log_time_format="[%X]")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for line in without_effect:
        logging.warning(line)
    # What is imported by now stays. Reading an image out of JSON makes fifty thousand lists, and collections go through
    # all of TensorFlow's objects, seventy times in the course of it: that was most of the time of such a request.
    gc.freeze()
    gc.set_threshold(100_000)
    server = ModelServer(**options)
    with server:
        source = options["model_config_file"] or options["model_base_path"]
        host, names = server.host, server.model_names
        rest = f"  REST http://{host}:{server.rest_api_port}/v1/models" if server.rest_api_port else ""
        if rest and len(names) == 1:
            rest += f"/{names[0]}"
        typer.echo(f"serving {', '.join(names) or 'nothing'} from {source}  gRPC {host}:{server.port}{rest}")
        server.wait()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


@_command("mpru-tf quickstart", "mpru-tf quickstart --forget 8 --out eight")
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
        _print_json(results.to_dict())
    else:
        steps.show(results, output())
    if results.problems:
        _refuse(" ".join(results.problems))


unlearning.register(app, _help)  # unsir
evaluation.register(app, _help)  # evaluate
operations.register(app, _help)  # wait, status, label, rollout, rollback, retire, audit


# --------------------------------------------------------------------------------------------------------- showing
@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show that something is going on, where somebody is looking."""
    with messages().status(f"{what} ..."):
        yield


def _load_tensorflow() -> None:
    """Import TensorFlow now, so that it does not count as part of what is timed."""
    with _working("loading TensorFlow"):
        import_module("tensorflow")


def _print_json(value: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _named(indices: Sequence[int], labels: Sequence[str] | None) -> str:
    if labels is None:
        return ", ".join(map(str, indices))
    return ", ".join(f"{index} ({label})" for index, label in zip(indices, labels, strict=True))


def _show_inspection(inspection: Inspection) -> None:
    console = output()
    version = "no version number" if inspection.version is None else f"version {inspection.version}"
    tree = Tree(Text.assemble((str(inspection.path), "bold"), f"  {version}"))
    signatures = tree.add("signatures") if inspection.signatures else tree.add("no signatures")
    for name, signature in inspection.signatures.items():
        branch = signatures.add(Text.assemble((name, "cyan"), f"  {signature['method_name']}"))
        for direction in ("inputs", "outputs"):
            for key, tensor in signature[direction].items():
                branch.add(Text.assemble(f"{direction[:-1]:<6} ", (key, "green"), f"  {_tensor(tensor)}"))
    sites = tree.add("class scores") if inspection.score_sites else tree.add("no class scores")
    for site in inspection.score_sites:
        many = f" of {site.classes} classes" + (", each judged on its own" if site.multi_label else "")
        branch = sites.add(Text.assemble((site.kind, "cyan"), many))
        branch.add(Text(site.reason))
        for point in site.points:
            branch.add(Text.assemble("tensor  ", (str(point.tensor), "bold")))
        for name in site.outputs:
            branch.add(Text.assemble("reaches ", (name, "green"), f"  {site.output_kinds[name]}"))
    tensors = {str(point.tensor) for site in inspection.score_sites for point in site.points}
    others = [entry for entry in inspection.seen if tensors.isdisjoint(entry.tensors)]
    if others:
        passed_over = tree.add("other tensors that outputs are computed from")
        for entry in others:
            branch = passed_over.add(
                Text.assemble((", ".join(entry.tensors), "bold"), f"  {entry.op} {entry.shape}  {entry.verdict}")
            )
            for name in entry.outputs:
                branch.add(Text.assemble("reaches ", (name, "green")))
    labels = inspection.labels
    if labels is not None:
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        tree.add(Text.assemble("labels  ", (shown, "green"), f"  from {inspection.labels_where}"))
    elif inspection.labels_where is not None:
        tree.add(Text(f"no labels: {inspection.labels_where}"))
    if inspection.forgotten:
        names = None if labels is None else [labels[index] for index in inspection.forgotten]
        forgotten = f"forgotten: {_named(inspection.forgotten, names)}, method {inspection.method}"
        tree.add(Text(forgotten, style="magenta"))
    else:
        tree.add("nothing forgotten")
    console.print(tree, highlight=False)


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = tensor["shape"]
    if shape is None:
        return f"{tensor['dtype']} of unknown rank"
    return f"{tensor['dtype']} [{', '.join('?' if size is None else str(size) for size in shape)}]"


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


def _show_verification(verification: Verification) -> None:
    words = {True: "[green]passed[/green]", False: "[bold red]failed[/bold red]", None: "[yellow]skipped[/yellow]"}
    table = Table("check", "", "what was seen", title=str(verification.path), title_style="bold")
    for check in verification.checks:
        table.add_row(check.name, words[check.passed], escape(check.detail))
    output().print(table)


def _unfiltered_versions(result: ForgetResult) -> list[int]:
    """Return the other versions in the base path that still answer a class forgotten here."""
    from mpru_tf.errors import ManifestError
    from mpru_tf.manifest import read_manifest
    from mpru_tf.versions import list_versions

    base, found = result.path.parent, []
    for version in list_versions(base):
        try:
            manifest = read_manifest(base / str(version))
        except ManifestError:
            manifest = None
        if version != result.version and not set(result.forgotten) <= set(manifest.forgotten if manifest else ()):
            found.append(version)
    return found


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
    table = _grid()
    table.add_row("path", str(result.path))
    table.add_row("made from", str(result.source))
    table.add_row("forgotten", f"{_named(result.forgotten, result.labels)} of {result.classes} classes")
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
    _warn_of_what_is_left(result, unfiltered)


def _warn_of_what_is_left(result: ForgetResult, unfiltered: Sequence[int]) -> None:
    console = output()
    console.print(
        "\nThis protects what the server answers. The weights in the file still hold the class: whoever holds the file "
        "can take the filter off.",
        style="dim",
    )
    if unfiltered:
        versions = f"Version{'s' if len(unfiltered) > 1 else ''} {', '.join(map(str, unfiltered))}"
        console.print(
            f"{versions} in {result.path.parent} still answers a class that is forgotten here, to clients that ask "
            f"by number, and to everybody should version {result.version} be removed.",
            style="yellow",
            highlight=False,
        )


def _show_converted(result: ConversionResult, unfiltered: Sequence[int]) -> None:
    console = output()
    console.print(f"version {result.version} written", style="bold green", highlight=False)
    table = _grid()
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
        table.add_row("forgotten", escape(_named(forgotten.forgotten, forgotten.labels)))
        table.add_row("method", forgotten.method)
        table.add_row("leak gate", forgotten.leak_gate)
        table.add_row("load check", f"{forgotten.load_check['status']}: {forgotten.load_check['detail']}")
    table.add_row("bytes", f"{result.bytes}")
    of_it = "" if forgotten is None else f", {forgotten.seconds:.3f} of it for forgetting"
    table.add_row("seconds", f"{result.seconds:.3f}{of_it}")
    console.print(table, highlight=False)
    if forgotten is not None:
        _warn_of_what_is_left(forgotten, unfiltered)


def _features(result: ConversionResult) -> str:
    """How many features there are, and the first of them by name and type."""
    # As the file has them they could be anything, also what steers a terminal.
    names = ["".join(letter if letter.isprintable() else "?" for letter in name) for name in result.feature_names[:8]]
    named = zip(names, result.feature_types[:8] or ("",) * 8, strict=False)
    shown = ", ".join(f"{name} ({kind})" if kind else name for name, kind in named)
    more = ", ..." if len(result.feature_names) > 8 else ""
    return f"{result.features}: {shown}{more}" if shown else f"{result.features}, without names"


def main() -> None:
    """Run the command line as a program of its own."""
    hush_tensorflow()
    try:
        app(prog_name="mpru-tf")
    except KeyboardInterrupt:  # before or after the command itself
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
