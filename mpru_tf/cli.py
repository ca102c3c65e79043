"""The command line, ``mpru-tf``: a thin shell around the public Python API.

Exit status: 0 done; 1 refused, with one paragraph on stderr that says why; 2 wrong usage; 3 `audit` found something;
130 interrupted. What was asked for goes to stdout, everything else to stderr. TensorFlow is imported by the commands
that need it, not before.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import mpru_tf
from mpru_tf.command_line import INTERRUPTED, RefusingGroup, lay_out_help
from mpru_tf.commands import checks, convert, forget, inspect, means, quickstart
from mpru_tf.commands.convert import Backend
from mpru_tf.commands.options import Method
from mpru_tf.console import hush_tensorflow
from mpru_tf.evaluation import commands as evaluation
from mpru_tf.operations import commands as operations
from mpru_tf.serving import commands as serving
from mpru_tf.unlearning import commands as unlearning

__all__ = ["app", "main", "hush_tensorflow", "Backend", "Method"]

app = typer.Typer(
    name="mpru-tf",
    cls=RefusingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
    help=lay_out_help(
        """Make a classifier that TensorFlow Serving serves forget classes, by writing its next version.

        TensorFlow's own log stays off the terminal; TF_CPP_MIN_LOG_LEVEL=0 brings it back.""",
        "mpru-tf quickstart",
        "mpru-tf inspect models/resnet",
        "mpru-tf forget models/resnet --classes cat",
    ),
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mpru-tf {mpru_tf.__version__}")
        raise typer.Exit


# In the order in which the help page lists them; groups (convert, label) come last there wherever they are put.
inspect.register(app)
means.register(app)
checks.register(app)  # verify, history
forget.register(app)
convert.register(app)  # convert xgboost
serving.register(app)  # serve
quickstart.register(app)
unlearning.register(app)  # unsir
evaluation.register(app)  # evaluate
operations.register(app)  # wait, status, label, rollout, rollback, retire, audit


def main() -> None:
    """Run the command line as a program of its own."""
    hush_tensorflow()
    try:
        app(prog_name="mpru-tf")
    except KeyboardInterrupt:  # before or after the command itself
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
