"""The commands for operating a server; :func:`register` puts them on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mpru_tf.command_line import JsonOption, add, new_group, print_json
from mpru_tf.console import messages, output

FOUND = 3
"""Exit status of `audit` when it found something."""

_LABELS = "Labels (only with --config)"

BaseArgument = Annotated[
    Path, typer.Argument(metavar="BASE", help="Base path, as its files lie here.", show_default=False)
]
ServerOption = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", help="gRPC address of the server.", show_default=False)
]
MaybeServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="gRPC address of the server.", show_default=False)
]
ModelOption = Annotated[str, typer.Option("--model", metavar="NAME", help="Name of the model in the server.")]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE.pem", help="Certificates to trust, if it speaks TLS.", show_default=False),
]
ConfigOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="The server's --model_config_file; it is edited, comments stay.", show_default=False
    ),
]
ReadConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The server's --model_config_file, for its labels.", show_default=False
    ),
]
MaybeConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The server's --model_config_file; it is edited, comments stay.", show_default=False
    ),
]
TimeoutOption = Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds to wait at most.")]
RemembersOption = Annotated[
    bool,
    typer.Option("--i-know-it-remembers", help="Also a version that answers a class that is forgotten in another one."),
]
LabelArgument = Annotated[str, typer.Argument(metavar="LABEL", show_default=False)]
VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", show_default=False)]


def wait(
    server: ServerOption,
    model: ModelOption = "default",
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", help="That version. Default: any.", show_default=False),
    ] = None,
    timeout: TimeoutOption = 300.0,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a version is AVAILABLE: that one, not any.

    A server that is not up yet, or has not seen the version yet, is waited for. Exit status 1 if the version ends, with
    the server's reason, or the time is over.
    """
    from mpru_tf.operations.waiting import wait_until_available

    with _server(server, model, ca) as asked:
        waited = wait_until_available(asked, version, timeout, progress=_say)
    if as_json:
        print_json(waited.to_dict())
    else:
        typer.echo(f"version {waited.version} of {model} is AVAILABLE, after {waited.seconds:.1f} s")


def status(
    server: ServerOption,
    model: ModelOption = "default",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="LABEL", help="A label to ask for; may be repeated.", show_default=False),
    ] = None,
    config: ReadConfigOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the versions that a server knows of a model, their states and errors, and its labels.

    A server does not list its labels: asked for are 'stable', 'canary', those named with --label and those in --config.
    """
    from mpru_tf.operations.client import USUAL_LABELS
    from mpru_tf.operations.configuration import Configuration
    from mpru_tf.operations.waiting import status as ask

    labels = [*USUAL_LABELS, *(label or ())]
    if config is not None:
        labels.extend(Configuration.read(config).labels(model))
    with _server(server, model, ca) as asked:
        seen = ask(asked, tuple(labels))
    if as_json:
        print_json(seen.to_dict())
        return
    table = Table("version", "state", "labels", "error", title=escape(f"{model} at {server}"), title_style="bold")
    for one in seen.versions:
        theirs = ", ".join(name for name, number in seen.labels.items() if number == one.version)
        error = f"{one.error_code}: {one.error}" if one.error_code else ""
        table.add_row(str(one.version), one.state, escape(theirs), escape(error))
    output().print(table, highlight=False)


def set_label(
    label: LabelArgument,
    version: VersionArgument,
    server: ServerOption,
    config: ConfigOption,
    model: ModelOption = "default",
    timeout: TimeoutOption = 300.0,
    i_know_it_remembers: RemembersOption = False,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a version a new label.

    Waits until the version is AVAILABLE, as a server refuses labels of others; then sends the whole configuration with
    the label in it, looks whom the label reaches, and writes the file. If a step fails, everything is as it was.
    """
    _label(label, version, server, config, model, timeout, i_know_it_remembers, ca, as_json, move=False)


def move_label(
    label: LabelArgument,
    version: VersionArgument,
    server: ServerOption,
    config: ConfigOption,
    model: ModelOption = "default",
    timeout: TimeoutOption = 300.0,
    i_know_it_remembers: RemembersOption = False,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a label to another version, in the same steps as `set`.

    Moving it to a version that would answer a forgotten class again is refused, where the base path that the
    configuration names can be read from here.
    """
    _label(label, version, server, config, model, timeout, i_know_it_remembers, ca, as_json, move=True)


def _label(
    label: str,
    version: int,
    server: str,
    config: Path,
    model: str,
    timeout: float,
    i_know_it_remembers: bool,
    ca: Path | None,
    as_json: bool,
    move: bool,
) -> None:
    from mpru_tf.operations import labelling

    with _server(server, model, ca) as asked:
        change = labelling.set_label(
            asked,
            config,
            label,
            version,
            move=move,
            timeout=timeout,
            i_know_it_remembers=i_know_it_remembers,
            progress=_say,
        )
    if as_json:
        print_json(change.to_dict())
    else:
        before = "a new label" if change.before is None else f"version {change.before} before"
        typer.echo(f"label {label} stands for version {version} ({before})")


def rollout(
    base: BaseArgument,
    server: ServerOption,
    model: ModelOption = "default",
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASSES", help="Classes to forget, as `forget --classes` takes them.", show_default=False
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", help="A version that is there already instead.", show_default=False),
    ] = None,
    config: MaybeConfigOption = None,
    canary_label: Annotated[
        str, typer.Option(metavar="LABEL", help="Goes to the new version first.", rich_help_panel=_LABELS)
    ] = "canary",
    stable_label: Annotated[
        str, typer.Option(metavar="LABEL", help="Goes there once its answers are right.", rich_help_panel=_LABELS)
    ] = "stable",
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Examples to compare answers to: .npz, .npy, or JSON as REST takes it. Default: made up.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Requests to compare.")] = 8,
    timeout: TimeoutOption = 300.0,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="As of `forget`.", show_default=False)] = None,
    method: Annotated[str | None, typer.Option(metavar="METHOD", help="As of `forget`.", show_default=False)] = None,
    temperature: Annotated[
        float | None, typer.Option(min=1.0, metavar="T", help="As of `forget`.", show_default=False)
    ] = None,
    class_means: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="As of `forget`.", show_default=False)
    ] = None,
    redact_labels: Annotated[bool, typer.Option("--redact-labels", help="As of `forget`.")] = False,
    i_know_it_remembers: RemembersOption = False,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a new version to the clients, and look at its answers on the way.

    Publishes it, waits for it, sees that it answers, moves the canary label, asks the old and the new version the same,
    and moves the stable label. Forgotten classes must answer exactly 0, retained ones what the filter makes of the old
    answers. If a step fails, the labels are put back.

    Without --config no labels are in use: who names no version gets the new one as soon as it is loaded.
    """
    from mpru_tf.operations import rollout as rolling

    options = {
        "labels": labels,
        "method": method,
        "temperature": temperature,
        "class_means": class_means,
        "redact_labels": redact_labels,
    }
    with _server(server, model, ca) as asked:
        result = rolling.rollout(
            base,
            asked,
            classes=classes or (),
            version=version,
            config=config,
            canary_label=canary_label,
            stable_label=stable_label,
            samples=samples,
            requests=requests,
            timeout=timeout,
            i_know_it_remembers=i_know_it_remembers,
            progress=_say,
            **options,
        )
    if as_json:
        print_json(result.to_dict())
        return
    console = output()
    console.print(f"version {result.version} is rolled out", style="bold green", highlight=False)
    seen = result.comparison
    table = Table("", "version", "median, ms", "slowest, ms")
    for name, number, latency in (("old", result.before, seen.old), ("new", result.version, seen.new)):
        if latency is not None:
            table.add_row(name, str(number), f"{latency.median * 1e3:.2f}", f"{latency.slowest * 1e3:.2f}")
    console.print(table, highlight=False)
    difference = "" if seen.largest_difference is None else f", largest difference {seen.largest_difference:.2g}"
    console.print(f"{seen.requests} requests, {seen.rows} examples, held against {escape(seen.against)}{difference}")


def rollback(
    base: BaseArgument,
    to: Annotated[int, typer.Option("--to", metavar="N", help="The version to go back to.", show_default=False)],
    server: MaybeServerOption = None,
    model: ModelOption = "default",
    config: MaybeConfigOption = None,
    stable_label: Annotated[
        str, typer.Option(metavar="LABEL", help="The label that moves back.", rich_help_panel=_LABELS)
    ] = "stable",
    timeout: TimeoutOption = 300.0,
    i_know_it_remembers: RemembersOption = False,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer from an older version again, unless it would answer a forgotten class.

    A server on a plain base path follows the newest version, so the content of version N is published once more under a
    new, higher number, with hard links: nothing is deleted, and the swap is as free of gaps as any. With --server, it
    is waited for.

    With --config, the label moves back instead, at once if version N is still loaded; clients that name neither a label
    nor a version stay with the newest.
    """
    from mpru_tf.operations import rollback as rolling

    with _maybe_server(server, model, ca) as asked:
        result = rolling.rollback(
            base,
            to,
            server=asked,
            config=config,
            label=stable_label,
            i_know_it_remembers=i_know_it_remembers,
            timeout=timeout,
            progress=_say,
        )
    if as_json:
        print_json(result.to_dict())
        return
    console = output()
    if result.label is not None:
        console.print(f"label {escape(result.label)} stands for version {to} again, as before {result.before}")
    else:
        seen = ", and AVAILABLE" if result.available else "; nobody looked whether a server answers from it"
        console.print(f"version {to} is published again as version {result.version} ({result.files}){seen}")
    if result.remembers:
        classes = ", ".join(map(str, result.remembers))
        console.print(f"It answers forgotten classes again: {classes}.", style="bold red", highlight=False)


def retire(
    base: BaseArgument,
    older_than: Annotated[
        int | None,
        typer.Option(metavar="N", help="Every version below this number.", show_default=False),
    ] = None,
    unfiltered: Annotated[
        bool, typer.Option("--unfiltered", help="Those that answer a class that the newest forgets. The default.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where to. Default: BASE/retired-N.", show_default=False),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which, and do nothing.")] = False,
    server: MaybeServerOption = None,
    model: ModelOption = "default",
    config: MaybeConfigOption = None,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move versions that answer forgotten classes out of the base path.

    Only if the newest version forgets these classes, is as it was published and, with --server, AVAILABLE; never the
    newest, and none for which a label stands. Each leaves with one rename, to a name that no server takes for a number.

    What is retired still holds the classes. `history` goes on telling of it from the manifests of later versions
    (digests, forget lists), as missing; `verify` of later versions does not need it.
    """
    from mpru_tf.operations import retire as retiring

    if unfiltered and older_than is not None:
        raise typer.BadParameter("give a number or --unfiltered, not both", param_hint="--older-than")
    if delete and to is not None:
        raise typer.BadParameter("move them or remove them, not both", param_hint="--delete")
    with _maybe_server(server, model, ca) as asked:
        result = retiring.retire(
            base,
            older_than=older_than,
            to=to,
            delete=delete,
            server=asked,
            config=config,
            dry_run=dry_run,
            progress=_say,
        )
    if as_json:
        print_json(result.to_dict())
        return
    console = output()
    would = "would leave" if dry_run else "left"
    for one in result.retired:
        where = "removed" if one.path is None else str(one.path)
        console.print(f"version {one.version} {would}: {escape(where)}", highlight=False)
    if not result.retired:
        console.print("no version had to leave", highlight=False)
    elif not dry_run:
        what = "They still hold" if not delete else "Nobody can roll back to them; newer weights still hold"
        console.print(
            f"{what} the classes. `history` tells of them as missing, from later manifests; `verify` needs none.",
            style="dim",
        )
    if result.still_loaded:
        loaded = ", ".join(map(str, result.still_loaded))
        console.print(f"The server still answers from what was retired: {loaded}.", style="bold red", highlight=False)
    if result.left:
        left = ", ".join(map(str, result.left))
        console.print(f"Still there, and answering forgotten classes: {left}.", style="yellow", highlight=False)


def audit(
    base: BaseArgument,
    server: MaybeServerOption = None,
    model: ModelOption = "default",
    config: ReadConfigOption = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="LABEL", help="A label to ask for; may be repeated.", show_default=False),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Also read every byte of the weights.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print findings only, for a scheduled job.")] = False,
    ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version answers which forgotten class, and what else is not as it must be; one line per finding.

    Exit status 0 if nothing was found, 3 if something was, 1 if it could not be looked at. A version of which something
    is wrong is assumed to answer what it forgot. Nothing is changed, and no model is loaded.
    """
    from mpru_tf.operations import audit as auditing

    with _maybe_server(server, model, ca) as asked:
        result = auditing.audit(
            base,
            server=asked,
            config=config,
            labels=label or (),
            full=full,
            progress=_silent if quiet else _say,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        if not quiet:
            _show_audit(result)
        for finding in result.findings:
            typer.echo(" ".join(str(finding).split()))
    for unseen in result.unseen:
        messages().print(f"not looked at: {escape(unseen)}", style="bold red", soft_wrap=True, highlight=False)
    if result.findings or result.unseen:
        raise typer.Exit(FOUND if result.findings else 1)


def _show_audit(result: Any) -> None:
    from mpru_tf.operations.remembering import named

    table = Table("version", "forgets", "answers, though forgotten", "server", "labels", title=escape(str(result.base)))
    for one in result.versions:
        theirs = ", ".join(name for name, number in result.labels.items() if number == one.version)
        answers = escape(named(one.answers, result.class_labels)) if one.answers else "none"
        colour = "red" if one.answers else "green"
        if not one.is_sure:
            answers, colour = f"{answers} (something is wrong with it)", "bold red"
        told = [named(one.forgotten, result.class_labels)] if one.forgotten else []
        if one.unguarded:
            told.append(f"{named(one.unguarded, {})} unlearned in the weights, not guaranteed: no filter")
        forgets = escape("; ".join(told) or "nothing")
        table.add_row(str(one.version), forgets, f"[{colour}]{answers}[/]", one.state or "", escape(theirs))
    output().print(table, highlight=False)


# ---------------------------------------------------------------------------------------------------------- the rest
def _server(target: str, model: str, ca: Path | None) -> Any:
    from mpru_tf.operations.client import Server

    return Server(target, model, None if ca is None else str(ca))


def _maybe_server(target: str | None, model: str, ca: Path | None) -> Any:
    from contextlib import nullcontext

    return nullcontext() if target is None else _server(target, model, ca)


def _say(phrase: str) -> None:
    messages().print(phrase, style="dim", markup=False, highlight=False, soft_wrap=True)


def _silent(phrase: str) -> None:
    """Progress for nobody."""


_AT = "--server localhost:8500 --model resnet"


def register(app: typer.Typer) -> None:
    """Put the commands on a command line."""
    add(app, wait, f"mpru-tf wait {_AT} --version 2", f"mpru-tf wait {_AT} --version 2 --timeout 60")
    add(app, status, f"mpru-tf status {_AT}", f"mpru-tf status {_AT} --json | jq '.versions[].state'")
    set_canary = f"mpru-tf label set canary 2 {_AT} --config models.config"
    group = new_group("Set and move the labels of versions.", set_canary)
    add(group, set_label, set_canary, name="set")
    add(group, move_label, f"mpru-tf label move stable 2 {_AT} --config models.config", name="move")
    app.add_typer(group, name="label")
    add(
        app,
        rollout,
        f"mpru-tf rollout models/resnet {_AT} --classes cat --config models.config",
        f"mpru-tf rollout models/resnet {_AT} --version 3 --samples samples.npz",
    )
    add(
        app,
        rollback,
        f"mpru-tf rollback models/resnet --to 2 {_AT}",
        f"mpru-tf rollback models/resnet --to 2 {_AT} --config models.config",
    )
    add(
        app,
        retire,
        f"mpru-tf retire models/resnet {_AT}",
        "mpru-tf retire models/resnet --older-than 3 --to /archive/resnet",
    )
    add(app, audit, f"mpru-tf audit models/resnet {_AT}", f"mpru-tf audit models/resnet {_AT} --quiet || alert")
