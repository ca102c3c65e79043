"""The command ``serve``; :func:`register` puts it on the command line."""

from __future__ import annotations

import gc
import logging
import signal
from types import FrameType
from typing import Any

import typer
from rich.logging import RichHandler

import mpru_tf
from mpru_tf.command_line import add
from mpru_tf.console import messages
from mpru_tf.serving.command_line import ServeCommand, is_on, split, with_signature


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


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(
        app,
        serve,
        "mpru-tf serve --port=8500 --rest_api_port=8501 --model_name=resnet --model_base_path=/models/resnet",
        "mpru-tf serve --model_config_file=models.config --model_config_file_poll_wait_seconds=10",
        "curl -d '{\"instances\": [[0.1, 0.2]]}' localhost:8501/v1/models/resnet:predict",
        cls=ServeCommand,
    )
