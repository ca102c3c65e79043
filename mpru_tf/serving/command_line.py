"""The flags of ``mpru-tf serve``, made from the table of options, and written the way the real server takes them.

``--flag=value`` and ``--flag value`` are the same. A switch is on as ``--switch`` and ``--switch=true``, off as
``--switch=false``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mpru_tf.serving.options import SWITCHES_WITHOUT_EFFECT, WITHOUT_EFFECT, Flag, flags

_IGNORED = "Accepted from command lines of the real server, without effect here"
_SWITCHES = frozenset(flag.name for flag in flags() if flag.type is bool) | SWITCHES_WITHOUT_EFFECT | {"version"}
_TRUTH = {"true": True, "false": False}


class ServeCommand(TyperCommand):
    """A command whose switches may have a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write every switch as ``--switch=value`` first."""
        parsed: list[str] = super().parse_args(ctx, _with_values(args))
        return parsed


def signature() -> inspect.Signature:
    """Return the signature from which typer makes the options of the command."""
    parameters = [_parameter(flag) for flag in flags()]
    parameters.append(
        _keyword("version", str, "false", typer.Option("--version", metavar="BOOL", help="Show versions and leave."))
    )
    for name, reason in sorted(WITHOUT_EFFECT.items()):
        info = typer.Option(f"--{name}", metavar="...", help=reason, rich_help_panel=_IGNORED, show_default=False)
        parameters.append(_keyword(name, str, "", info))
    return inspect.Signature(parameters)


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that were given, ready for ``ModelServer``, and a line for each flag that has no effect.

    Raises:
        typer.BadParameter: a switch has a value that is neither true nor false, or a port is none.
    """
    options = {flag.name: _value(flag, given[flag.name]) for flag in flags()}
    lines = [f"--{name} has no effect: {reason}" for name, reason in WITHOUT_EFFECT.items() if given[name]]
    return options, lines


def is_on(name: str, text: str) -> bool:
    """Return what the text of a switch means.

    Raises:
        typer.BadParameter: neither true nor false.
    """
    value = _TRUTH.get(text.lower())
    if value is None:
        raise typer.BadParameter(f"--{name}={text}: a switch is true or false")
    return value


def _value(flag: Flag, given: Any) -> Any:
    if flag.type is bool:
        return is_on(flag.name, given)
    if flag.name in ("port", "rest_api_port") and not 0 <= given <= 65535:
        raise typer.BadParameter(f"--{flag.name}={given} is no port: 0 to 65535")
    return given


def _parameter(flag: Flag) -> inspect.Parameter:
    default, kind = (str(flag.default).lower(), str) if flag.type is bool else (flag.default, flag.type)
    info = typer.Option(
        f"--{flag.name}",
        metavar=flag.metavar,
        help=flag.help,
        rich_help_panel=flag.group,
        show_default=flag.default not in ("", 0, -1) or flag.type is bool,
    )
    return _keyword(flag.name, kind, default, info)


def _keyword(name: str, kind: type, default: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _with_values(args: Sequence[str]) -> list[str]:
    written: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg.removeprefix("--") in _SWITCHES and arg.startswith("--"):
            value = rest.pop(0) if rest and rest[0].lower() in _TRUTH else "true"
            arg = f"{arg}={value}"
        written.append(arg)
    return written


def with_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that takes any keywords the signature of the flags."""
    function.__signature__ = signature()  # type: ignore[attr-defined]
    return function
