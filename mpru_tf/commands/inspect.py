"""The command ``inspect``; :func:`register` puts it on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text
from rich.tree import Tree

import mpru_tf
from mpru_tf.command_line import JsonOption, add, named, print_json, refuse, working
from mpru_tf.commands.options import (
    ModelArgument,
    MultiLabelOption,
    NumClassesOption,
    OutputOption,
    ScoresOption,
    SiteOption,
)
from mpru_tf.console import output
from mpru_tf.errors import ManifestError, explain
from mpru_tf.unlearning.record import RECORD

if TYPE_CHECKING:
    from mpru_tf.inspection import Inspection


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
    with working("reading the model"):
        inspection = mpru_tf.inspect(
            model,
            outputs=output_names or (),
            sites=sites or (),
            scores=None if scores is None else scores.value,
            num_classes=num_classes,
            multi_label=multi_label,
        )
    _check_record(inspection)
    if as_json:
        print_json(inspection.to_dict())
    else:
        _show_inspection(inspection)
    if inspection.refusal is not None:
        refuse(inspection.refusal)


def _check_record(inspection: Inspection) -> None:
    """A record was written for as many classes as there are.

    Raises:
        ManifestError: it names others.
    """
    counts = [site.classes for site in inspection.score_sites]
    if inspection.unlearned and counts and inspection.unlearned[-1] >= max(counts):
        raise ManifestError(
            explain(
                f"The record of classes that were unlearned in the weights is not of this model: {RECORD}",
                received=f"class {inspection.unlearned[-1]}",
                valid=f"indices 0 to {max(counts) - 1}",
            )
        )


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
        forgotten = f"forgotten: {named(inspection.forgotten, names)}, method {inspection.method}"
        tree.add(Text(forgotten, style="magenta"))
    else:
        tree.add("nothing forgotten")
    if inspection.unlearned:
        names = None if labels is None else [labels[index] for index in inspection.unlearned]
        tree.add(Text(f"unlearned in the weights: {named(inspection.unlearned, names)}", style="magenta"))
    console.print(tree, highlight=False)


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = tensor["shape"]
    if shape is None:
        return f"{tensor['dtype']} of unknown rank"
    return f"{tensor['dtype']} [{', '.join('?' if size is None else str(size) for size in shape)}]"


def register(app: typer.Typer) -> None:
    """Put the command on a command line."""
    add(
        app,
        inspect,
        "mpru-tf inspect models/resnet",
        "mpru-tf inspect models/resnet/2 --json | jq '.score_sites[].outputs'",
        "mpru-tf inspect models/tagger --multi-label",
    )
