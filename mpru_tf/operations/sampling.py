"""Requests to ask two versions of a model the same: from a file, or made up from the signature."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mpru_tf.errors import DataError, ServingError, UnsupportedModelError, explain
from mpru_tf.inspection import inspect
from mpru_tf.operations.client import Server
from mpru_tf.request_files import RequestFile
from mpru_tf.saved_model import bundle as bundles

if TYPE_CHECKING:
    from mpru_tf.saved_model.graph import Graph

    Values = dict[str, npt.NDArray[Any]]

_MOST_ROWS = 32  # in one request


@dataclass(frozen=True)
class Shown:
    """The outputs of a model that show all class scores.

    Attributes:
        classes: number n of classes.
        multi_label: whether each class is judged on its own.
        is_half: whether they are computed in float16 or bfloat16.
        kinds: what each output holds ('probabilities', 'log_probabilities', 'logits'), by signature and key.
        graphs: the MetaGraph of each of these signatures.
    """

    classes: int
    multi_label: bool
    is_half: bool
    kinds: Mapping[str, Mapping[str, str]]
    graphs: Mapping[str, Graph]


@dataclass(frozen=True)
class Request:
    """A signature and one array per input."""

    signature: str
    inputs: Values

    @property
    def rows(self) -> int:
        """How many examples there are in it."""
        return max((int(array.shape[0]) for array in self.inputs.values() if array.ndim), default=1)


def shown_by(version_dir: Path) -> Shown:
    """Find the outputs of a version that can be compared.

    Raises:
        UnsupportedModelError: it has no class scores, or no output shows all of them.
    """
    found = inspect(version_dir)
    if found.refusal is not None or not found.score_sites:
        raise UnsupportedModelError(found.refusal or f"{version_dir} has no class scores.")
    site = found.score_sites[0]
    kinds: dict[str, dict[str, str]] = {}
    for name, kind in sorted(site.output_kinds.items()):
        signature, _, key = name.partition(":")
        if kind != "derived":
            kinds.setdefault(signature, {})[key] = kind
    graphs: dict[str, Graph] = {}
    for graph in bundles.read(version_dir).graphs():
        for name in kinds.keys() & graph.meta_graph.signature_def.keys():
            if name not in graphs or "serve" in graph.meta_graph.meta_info_def.tags:
                graphs[name] = graph
    if not kinds:
        raise UnsupportedModelError(
            explain(
                "No output of this model shows all class scores, so its answers cannot be compared.",
                received=", ".join(site.outputs),
                valid="an output with one number per class",
            )
        )
    return Shown(site.classes, site.multi_label, site.is_half, {name: kinds[name] for name in graphs}, graphs)


# ----------------------------------------------------------------------------------------------------------- made up
def made_up(server: Server, version: int, shown: Shown, number: int) -> list[Request]:
    """Make up requests that a version answers; signatures take turns.

    Raises:
        ServingError: no signature answers any of them.
    """
    refusals: list[str] = []
    ways: dict[str, int] = {}
    for name in shown.kinds:
        for way, inputs in enumerate(_probes(shown, name, 0)):
            try:
                server.predict(name, inputs, version=version)
            except ServingError as error:
                refusals.append(str(error))
                continue
            ways[name] = way
            break
    if not ways:
        raise ServingError(
            explain(
                f"Version {version} answers no request that was made up from its signatures.",
                received=refusals[0] if refusals else None,
                hint="Give requests with --samples.",
            )
        )
    names = itertools.cycle(ways)
    requests = []
    for seed in range(number):
        name = next(names)
        inputs = next(itertools.islice(_probes(shown, name, seed), ways[name], None))
        requests.append(Request(name, inputs))
    return requests


def _probes(shown: Shown, name: str, seed: int) -> Iterator[Values]:
    from mpru_tf import probes

    graph = shown.graphs[name]
    return probes.requests(graph.meta_graph.signature_def[name], graph, seed)


# -------------------------------------------------------------------------------------------------------- from a file
def from_file(path: str | os.PathLike[str], shown: Shown, number: int) -> list[Request]:
    """Cut the examples in a file into at most ``number`` requests, for every signature that they fit in turn.

    Raises:
        DataError: the file cannot be read, fits no signature, or holds too few examples.
    """
    signatures = {name: graph.meta_graph.signature_def[name] for name, graph in shown.graphs.items()}
    fitting = RequestFile(path).fit(signatures)
    each = -(-number // len(fitting))
    cut = [_cut(name, inputs, signatures[name].inputs, each) for name, inputs in fitting.items()]
    in_turn = (request for requests in itertools.zip_longest(*cut) for request in requests if request is not None)
    return list(itertools.islice(in_turn, number))


def _cut(name: str, inputs: Values, wanted: Mapping[str, Any], number: int) -> Iterator[Request]:
    total = len(next(iter(inputs.values())))
    fixed = [info.tensor_shape.dim[0].size for info in wanted.values() if info.tensor_shape.dim]
    size = next((one for one in fixed if one > 0), min(_MOST_ROWS, max(1, -(-total // number))))
    whole: Sequence[int] = range(0, total - size + 1, size) if any(one > 0 for one in fixed) else range(0, total, size)
    if not whole:
        raise DataError(
            explain("There are too few examples for one request.", received=total, valid=f"at least {size}")
        )
    for start in whole[:number]:
        yield Request(name, {key: array[start : start + size] for key, array in inputs.items()})
