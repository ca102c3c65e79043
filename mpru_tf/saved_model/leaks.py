"""The leak gate: no output may be reached by unfiltered class scores.

The proof is a walk over the graph as it will be served, from each output backwards to what the client sent. A way that
does not pass through the filter is a bypass. Three kinds are told apart:

* the class scores themselves, unfiltered, in another form (the logits before a temperature, the votes of an ensemble):
  always refused;
* something computed before the scores (an embedding, features, another head): refused unless the output is allowed or
  dropped, since it may identify the class without naming it;
* an echo of the request: harmless.

What only tells a shape (``Shape``, ``ZerosLike``) carries nothing about a class and ends the walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpru_tf.errors import LeakError, explain
from mpru_tf.saved_model.dataflow import Dataflow, of_requests
from mpru_tf.saved_model.graph import Graph, Place, Tensor, is_for_clients
from mpru_tf.saved_model.score_site import SitePoint
from mpru_tf.saved_model.splice import Splice
from mpru_tf.saved_model.structure import tensor_names

_FAMILY_OPS = frozenset(
    {
        *("Add", "AddV2", "AddN", "Sub", "Mul", "Div", "RealDiv", "DivNoNan", "Maximum", "Minimum", "Exp", "Neg"),
        *("BiasAdd", "BiasAddV1", "ClipByValue", "Reshape", "Squeeze", "ExpandDims", "Softmax", "LogSoftmax", "Mean"),
        *("ConcatV2", "Pack", "Pow", "Log"),
    }
)


@dataclass(frozen=True)
class Leak:
    """One output that answers without passing the filter.

    Attributes:
        output: the output, as SIG:KEY.
        carries_scores: True if unfiltered class scores reach it, False if only something computed before them does.
        path: tensor names from the output back to the request.
    """

    output: str
    carries_scores: bool
    path: tuple[str, ...]

    def __str__(self) -> str:
        what = "unfiltered class scores" if self.carries_scores else "values computed before the class scores"
        return f"{self.output} ({what}): " + " <- ".join(self.path)


def score_family(graph: Graph, points: Iterable[SitePoint]) -> frozenset[Tensor]:
    """The raw class scores and every earlier form of them: before the bias, the temperature, the vote.

    To be taken from the graph as it was before the splice.
    """
    flow = of_requests(graph)
    family: set[Tensor] = set()
    queue = [Place(point.tensor) for point in points if point.meta_graph == graph.index]
    while queue:
        place = queue.pop()
        if place.tensor in family:
            continue
        family.add(place.tensor)
        place = graph.source(place)  # a site may lie behind a Cast
        family.add(place.tensor)
        node = graph.node(place.tensor)
        if node is not None and node.op in _FAMILY_OPS:
            steps = (graph.source(step) for step in graph.inputs_of(place))
            queue.extend(
                step for step in steps if graph.node(step.tensor) is not None and flow.depends_on_request(step)
            )
    return frozenset(tensor for tensor in family if not graph.is_request(tensor))


class LeakGate:
    """The walk over one spliced MetaGraph.

    Args:
        graph: the MetaGraph as it will be served.
        splices: the filters in it.
        family: what :func:`score_family` found before the splice.
        allowed: SIG:KEY of outputs that the owner allows although they are computed before the class scores.
    """

    def __init__(
        self, graph: Graph, splices: Iterable[Splice], family: frozenset[Tensor], allowed: Sequence[str] = ()
    ) -> None:
        self.graph = graph
        self._family = family
        self._filtered = {
            graph.scope(done.function).tensor(done.filtered) for done in splices if done.meta_graph == graph.index
        }
        self._flow = Dataflow(graph, self._is_filtered)
        self._allowed = {
            graph.source(Place(graph.signature_tensor(info.name))).tensor
            for name, signature in graph.meta_graph.signature_def.items()
            for key, info in signature.outputs.items()
            if info.name and f"{name}:{key}" in allowed
        }

    def _is_filtered(self, tensor: Tensor) -> bool:
        return tensor in self._filtered  # only the filter's result; what it computes on the way there is not filtered

    def signature_leaks(self) -> list[Leak]:
        """Every signature output that is reached past the filter and is not allowed."""
        leaks = []
        for name, signature in sorted(self.graph.meta_graph.signature_def.items()):
            if not is_for_clients(name, signature):
                continue
            for key, info in sorted(signature.outputs.items()):
                for tensor_name in tensor_names(info):
                    leak = self._leak(f"{name}:{key}", self.graph.signature_tensor(tensor_name), ())
                    if leak is not None:
                        leaks.append(leak)
        return leaks

    def function_is_clean(self, function: str, captured: int) -> bool:
        """Whether no output of a function is reached past the filter from what its caller passes.

        Args:
            function: name of a library function.
            captured: how many of its last arguments are captured variables and tables rather than a caller's values.
        """
        scope = self.graph.scope(function)
        given = {name for name, position in scope.args.items() if position < len(scope.args) - captured}
        for index in range(len(scope.outputs)):
            reached = given.intersection(self._flow.summary(function, index))
            if reached and not self._excused(Place(self.graph.returned(function, index))):
                return False
        return True

    def _leak(self, output: str, tensor: Tensor, way: tuple[Tensor, ...]) -> Leak | None:
        origins = self._flow.origins(tensor)
        if not origins:
            return None
        ways = list(origins.values())
        scored = next((way for way in ways if not self._family.isdisjoint(way)), None)
        carries_scores = scored is not None or self._reaches_family(tensor)
        if not carries_scores and self._excused(Place(tensor)):
            return None
        return Leak(output, carries_scores, tuple(str(step) for step in (scored or ways[0])))

    def _reaches_family(self, tensor: Tensor) -> bool:
        hits: list[Tensor] = []

        def barrier(passed: Tensor) -> bool:
            if passed in self._family and not self._is_filtered(passed):
                hits.append(passed)
            return self._is_filtered(passed)

        Dataflow(self.graph, barrier).origins(tensor)
        return bool(hits)

    def _excused(self, place: Place) -> bool:
        """Allowed by name, or nothing but an echo of what was sent."""
        source = self.graph.source(place)
        is_argument = self.graph.node(source.tensor) is None
        return is_argument or source.tensor in self._allowed or self.graph.is_request(source.tensor)


def refuse(leaks: Sequence[Leak]) -> LeakError:
    """The error that lists each leak node by node and says what its owner can do."""
    scored = [leak for leak in leaks if leak.carries_scores]
    early = [leak.output for leak in leaks if not leak.carries_scores]
    hints = []
    if early:
        options = " ".join(f"--drop-output {output}" for output in early)
        them = "it" if len(early) == 1 else "them"
        hints.append(
            f"Remove {them} from the signature ({options}), or, if the owner of the data agrees, keep {them} "
            f"({options.replace('--drop', '--allow')})."
        )
    if scored:
        options = " ".join(f"--drop-output {leak.output}" for leak in scored)
        hints.append(f"Unfiltered class scores cannot be allowed; remove them ({options}).")
    return LeakError(
        explain(
            "Outputs would still be answered past the filter.",
            received="; ".join(str(leak) for leak in leaks),
            valid="outputs that reach the client only through the filter",
            hint=" ".join(hints),
        ),
        tuple(leak.path for leak in leaks),
    )
