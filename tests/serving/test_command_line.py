"""The flags of ``mpru-tf serve``: which there are, and how they are written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mpru_tf.errors import ServingError
from mpru_tf.serving.command_line import ServeCommand, split, with_signature
from mpru_tf.serving.options import WITHOUT_EFFECT, ServerOptions, flags


def parse(*arguments: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the real parser makes of a command line; refusals are raised as SystemExit with their text."""
    parsed: list[tuple[dict[str, Any], list[str]]] = []
    app = typer.Typer()

    @app.command(cls=ServeCommand)
    @with_signature
    def serve(**given: Any) -> None:
        parsed.append(split(given))

    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        assert result.exit_code == 2
        raise SystemExit(result.stderr)
    return parsed[0]


def test_every_option_is_a_flag_with_its_default() -> None:
    options, lines = parse()
    assert options == asdict(ServerOptions())
    assert lines == []
    assert not WITHOUT_EFFECT.keys() & {flag.name for flag in flags()}


@pytest.mark.parametrize("form", [["--port=1", "--model_name=m"], ["--port", "1", "--model_name", "m"]])
def test_values_follow_a_space_or_an_equals_sign(form: list[str]) -> None:
    options, _ = parse(*form)
    assert (options["port"], options["model_name"]) == (1, "m")


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (["--enable_batching"], True),
        (["--enable_batching=true"], True),
        (["--enable_batching=True"], True),
        (["--enable_batching", "true"], True),
        (["--enable_batching=false"], False),
        (["--enable_batching", "false"], False),
        ([], False),
    ],
)
def test_switches(form: list[str], value: bool) -> None:
    options, _ = parse(*form, "--port=1", "--enable_model_warmup=false")
    assert (options["enable_batching"], options["port"], options["enable_model_warmup"]) == (value, 1, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--enable_batching=1"], "a switch is true or false"),
        (["--no_such_flag=1"], "No such option"),
        (["--use_alts_credentials"], "No such option"),  # not to be ignored: it would be served in plain text
        (["--rest_api_port=70000"], "no port"),
        (["--port=x"], "--port"),
        (["something"], "unexpected extra argument"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(*arguments)
    assert words in str(refused.value)


def test_flags_without_effect_say_so() -> None:
    _, lines = parse(
        "--per_process_gpu_memory_fraction=0.5", "--flush_filesystem_caches", "--xla_cpu_compilation_enabled=false"
    )
    assert [line.split()[0] for line in sorted(lines)] == [
        "--flush_filesystem_caches",
        "--per_process_gpu_memory_fraction",
        "--xla_cpu_compilation_enabled",
    ]
    assert all("has no effect: " in line for line in lines)


def test_session_threads() -> None:
    assert ServerOptions().session_threads == (0, 0)
    assert ServerOptions(tensorflow_session_parallelism=3).session_threads == (3, 3)
    both = ServerOptions(tensorflow_session_parallelism=3, tensorflow_intra_op_parallelism=2)
    assert both.session_threads == (2, 0)
    with pytest.raises(ServingError, match="given twice"):
        ServerOptions(
            model_base_path="/m",
            tensorflow_session_parallelism=3,
            tensorflow_intra_op_parallelism=2,
            tensorflow_inter_op_parallelism=2,
        ).check()


def test_the_help_page_costs_neither_tensorflow_nor_grpc() -> None:
    script = "import sys, mpru_tf.cli; sys.exit(any(m in sys.modules for m in ('tensorflow', 'grpc')))"
    assert subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_versions_are_shown() -> None:
    from mpru_tf import cli

    result = CliRunner().invoke(cli.app, ["serve", "--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("TensorFlow ModelServer: mpru_tf ")
    assert "\nTensorFlow Library: 2." in result.stdout
