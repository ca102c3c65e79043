"""From one output of a signature to the tensor in which its class scores arise, and what else shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpru_tf.saved_model import shapes
from mpru_tf.saved_model.dataflow import of_requests
from mpru_tf.saved_model.graph import CASE_OPS, FIRST_INPUT_OPS, IF_OPS, Graph, Place, Tensor, is_for_clients
from mpru_tf.saved_model.walk import (
    ARITHMETIC_OPS,
    CUTTING_OPS,
    MAX_DEPTH,
    MAX_STEPS,
    MERGE_OPS,
    RESHAPING_OPS,
    SIGMOID_OPS,
    SOFTMAX_OPS,
    branches,
    classify,
    collected,
    head_input,
    is_collected,
    moves,
    shown_tensor,
    walk_back,
)

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo

LOGITS = "logits"
PROBABILITIES = "probabilities"
DT_HALF, DT_BFLOAT16 = 19, 14  # types.proto; importing it would import TensorFlow
FLOATS = (1, 2, DT_HALF, DT_BFLOAT16)  # and DT_FLOAT, DT_DOUBLE


@dataclass(frozen=True)
class Candidate:
    """What walking back from one output ended at.

    Attributes:
        output: the output, as SIG:KEY.
        signature: its signature.
        places: the tensor; several where a condition decides which of them answers.
        ending: 'softmax', 'sigmoid', 'linear', 'forest', 'normalised', 'mixture' (of sigmoids), 'side by side' (of
            probability vectors, which together are none) or 'other'.
        is_float: whether the output itself holds floating-point numbers.
        shape: of the tensor at :attr:`place`, None for an unknown rank.
        width: length of its last axis, None if the graph does not tell.
    """

    output: str
    signature: str
    places: tuple[Place, ...]
    ending: str
    is_float: bool
    shape: shapes.Shape | None
    width: int | None

    @property
    def place(self) -> Place:
        return self.places[0]


def candidate_of(
    graph: Graph, name: str, signature: SignatureDef, key: str, info: TensorInfo, multi_label: bool = False
) -> Candidate | None:
    """What one output is computed from; None when nothing that a client sends reaches it.

    Args:
        graph: the MetaGraph.
        name: the signature's key.
        signature: the SignatureDef.
        key: the output's key.
        info: the output.
        multi_label: look for a Sigmoid, where else a Softmax is looked for.
    """
    if not info.name:  # sparse and composite outputs have no single tensor
        return None
    start = Place(graph.signature_tensor(info.name))
    flow = of_requests(graph)
    if not is_for_clients(name, signature) or not flow.depends_on_request(start):
        return None
    declared = shapes.from_proto(info.tensor_shape)
    head, heads = ("sigmoid", SIGMOID_OPS) if multi_label else ("softmax", SOFTMAX_OPS)

    def candidate(places: Iterable[Place], ending: str, declared: shapes.Shape | None = None) -> Candidate:
        found = tuple(places)
        shape = _known_shape(graph, found[0], declared)
        width = shape[-1] if shape and shape[-1] is not None else shapes.last_axis(graph, found[0])
        if walk.collected and found[0] != shown and shape is not None:
            shape = (None, *shape)  # one for each turn of a loop
        return Candidate(f"{name}:{key}", name, found, ending, _is_float(info), shape, width)

    walk = walk_back(graph, flow, start, heads)
    kinds = set(walk.ends.values())
    shown, (direct, reshaped) = graph.source(start), shown_tensor(graph, start)
    if kinds == {head} and not walk.turns and (len(walk.ends) == 1 or not walk.mixed):
        scores = {place.tensor for place in walk.ends}
        shows = held(graph, start, scores, LOGITS, multi_label) != "derived" and not reshaped and not walk.collected
        return candidate(walk.ends, head, declared if shows else None)
    if kinds == {"softmax"} and len(walk.ends) > 1 and _lie_side_by_side(graph, shown):
        return candidate([shown], "side by side", declared)
    if kinds == {head} and _is_float(info):  # several heads vote: what leaves the model is the vote, as probabilities
        return candidate([shown], "mixture" if multi_label else "normalised", declared)
    if kinds == {"sigmoid"} and not multi_label and _is_float(info):
        if walk.calculated and all(shapes.last_axis(graph, place) is None for place in walk.ends):
            return candidate(list(walk.ends)[:1], "sigmoid")  # p and 1 - p side by side
        return candidate([shown], "sigmoid", declared)
    kind = classify(graph, flow, direct)
    if kind == "linear" and reshaped and shapes.last_axis(graph, direct) is None:
        made = shapes.static_shape(graph, direct)
        if made and made[-1] == 1:  # one number for each of several things that were asked about together
            return candidate([direct], kind)
    if _is_float(info) and kind in ("linear", "forest", "normalised", "sigmoid"):
        flattened = reshaped and declared is not None and len(declared) == 1
        return candidate([direct], kind) if flattened else candidate([shown if reshaped else direct], kind, declared)
    if kinds == {"linear"} and walk.calculated and _is_float(info):
        kinds = {"other"}  # features: nobody takes a logarithm of logits
    if len(kinds) == 1 and not walk.turns and not kinds.isdisjoint(("linear", "forest", "normalised", "mixture")):
        if len(walk.ends) == 1:  # only ids or ranked scores leave the model, or what comes out of a loop
            (place,) = walk.ends
            return candidate([place], kinds.pop(), declared if place == shown else None)
        if not walk.mixed and _is_float(info):
            return candidate([shown], kinds.pop(), declared)
    return candidate([shown], "other", declared)


def _lie_side_by_side(graph: Graph, place: Place) -> bool:
    """Whether a tensor is put together from several whole probability vectors, which together are no distribution."""
    node = graph.node(place.tensor)
    if node is None or node.op != "ConcatV2":
        return False
    parts = [graph.source(step) for step in graph.inputs_of(place)[:-1]]
    return sum(head_input(graph, part, SOFTMAX_OPS) is not None for part in parts) > 1


def held(
    graph: Graph,
    start: Place,
    targets: set[Tensor],
    kind: str,
    multi_label: bool = False,
    known: dict[Tensor, str] | None = None,
) -> str:
    """What an output shows that is computed from the class scores ``targets``, which hold ``kind``.

    Returns:
        ``kind`` for the scores themselves, 'probabilities' or 'log_probabilities' for what a Softmax (in a multi-label
        model, a Sigmoid) makes of them, or 'derived'.
    """
    direct, _ = shown_tensor(graph, start)
    if direct.tensor in targets or graph.source(start).tensor in targets:
        return kind
    node = graph.node(direct.tensor)
    if node is None:
        return "derived"
    scores = head_input(graph, direct, SIGMOID_OPS if multi_label else SOFTMAX_OPS)
    if scores is not None and (scores.tensor in targets or _reads(graph, direct, targets)):
        return "log_probabilities" if node.op == "LogSoftmax" else PROBABILITIES
    known = {} if known is None else known
    if direct.tensor in known:
        return known[direct.tensor]
    ways: list[Place] = []
    if len(direct.calls) > MAX_DEPTH:
        return "derived"
    if node.op in IF_OPS | CASE_OPS:
        ways = branches(graph, direct)
    elif node.op in MERGE_OPS:
        ways = graph.inputs_of(direct)
    elif is_collected(graph, direct):
        ways = collected(graph, direct)
    known[direct.tensor] = "derived"  # the answer to whoever comes by again in a circle
    kinds = {held(graph, way, targets, kind, multi_label, known) for way in ways}
    known[direct.tensor] = kinds.pop() if len(kinds) == 1 else "derived"
    return known[direct.tensor]


def _reads(graph: Graph, place: Place, targets: set[Tensor]) -> bool:
    """Whether what makes a tensor reads one of ``targets``, reshaped or in another dtype at most."""
    for _ in range(MAX_STEPS):
        inputs = graph.inputs_of(place)
        if not inputs:
            return False
        *_, place = way = list(graph.handed_on(inputs[0]))
        if any(step.tensor in targets for step in way):
            return True
        node = graph.node(place.tensor)
        if node is None or node.op not in RESHAPING_OPS | FIRST_INPUT_OPS:
            return False
    return False


def kind_at(graph: Graph, place: Place, multi_label: bool) -> str | None:
    """Whether a tensor holds logits or probabilities, from what reads it and what makes it; None if neither tells."""
    heads = SIGMOID_OPS if multi_label else SOFTMAX_OPS
    if any(node.op in heads for node in graph.readers(place.tensor)):
        return LOGITS
    made = classify(graph, of_requests(graph), shown_tensor(graph, place)[0])
    return {"linear": LOGITS, "forest": PROBABILITIES, "normalised": PROBABILITIES}.get(made)


def _known_shape(graph: Graph, place: Place, declared: shapes.Shape | None) -> shapes.Shape | None:
    inferred = shapes.static_shape(graph, place)
    if declared is None:
        return inferred
    if inferred is not None and len(inferred) == len(declared):
        return tuple(b if b is not None else a for a, b in zip(inferred, declared, strict=True))
    return declared


def _is_float(info: TensorInfo) -> bool:
    return info.dtype in FLOATS


def linear_behind(graph: Graph, candidate: Candidate) -> list[Place]:
    """The last linear layers from which an output is computed: a few steps back, at each way's first one."""
    flow = of_requests(graph)
    name, key = candidate.signature, candidate.output[len(candidate.signature) + 1 :]
    queue = [Place(graph.signature_tensor(graph.meta_graph.signature_def[name].outputs[key].name))]
    found: list[Place] = []
    seen: set[Place] = set()
    while queue and len(seen) < MAX_STEPS:
        place = graph.source(queue.pop())
        if place in seen:
            continue
        seen.add(place)
        node = graph.node(place.tensor)
        if node is None or graph.is_request(place.tensor):
            continue
        if classify(graph, flow, place) == "linear":
            found.append(place)
            continue
        steps = graph.inputs_of(place)
        if node.op in IF_OPS | CASE_OPS:
            steps = branches(graph, place)
        elif is_collected(graph, place):
            steps = collected(graph, place)
        queue.extend(step for step in steps if moves(graph, flow, step))
    return found


def weights_behind(graph: Graph, place: Place) -> frozenset[str | bytes]:
    """The variables and large constants of the layer that makes class scores: names, or the constants themselves."""
    flow = of_requests(graph)
    found: set[str | bytes] = set()
    seen: set[Place] = set()
    queue = [place]
    while queue and len(seen) < MAX_STEPS:
        place = graph.source(queue.pop())
        node = graph.node(place.tensor)
        if place in seen or node is None:
            continue
        seen.add(place)
        inputs = graph.inputs_of(place)
        if node.op == "Const":
            value = node.attr["value"].tensor
            if value.dtype in FLOATS and any(dim.size > 1 for dim in value.tensor_shape.dim):
                found.add(value.SerializeToString(deterministic=True))
        elif not inputs and not graph.is_request(place.tensor):
            found.add(node.name)
        elif node.op in ARITHMETIC_OPS | RESHAPING_OPS | CUTTING_OPS | {"BiasAdd", "BiasAddV1", "Softmax"}:
            queue.extend(inputs)
        else:
            queue.extend(step for step in inputs if not flow.depends_on_request(step))
    return frozenset(found)
