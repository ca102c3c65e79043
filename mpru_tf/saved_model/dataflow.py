"""What a tensor is computed from: the walk back to what a client sent, through calls, branches and loops.

:class:`Dataflow` proves for the leak gate that there is no way past a barrier, and tells for the survey what moves with
the request at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from mpru_tf.saved_model.graph import (
    MAIN,
    MOST_PLACES,
    PLACEHOLDER_OPS,
    SHAPE_OPS,
    WHILE_OPS,
    Call,
    Graph,
    Place,
    Scope,
    Tensor,
)

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef

_LONGEST_WAY = 1000  # shown of a way from an output to a request


def of_requests(graph: Graph) -> Dataflow:
    """What depends on a request in a graph as it stands; what was found out is kept until the graph is edited."""
    flow: Dataflow = graph.known_flow.setdefault("requests", Dataflow(graph))
    return flow


class Dataflow:
    """Which requests' values a tensor depends on, and along which way.

    The walk goes backwards from a tensor. It ends at a barrier (the filter's outputs, or ops that only tell a shape)
    and at nodes without data inputs; what remains are the placeholders of the main graph (or the arguments of a
    function) from which the value is reached past every barrier. A variable is reached by what the same function body
    writes into it, not by what other functions or earlier requests wrote.
    """

    def __init__(self, graph: Graph, barrier: Callable[[Tensor], bool] | None = None) -> None:
        self.graph = graph
        self.barrier = barrier or (lambda tensor: False)
        self._has_barrier = barrier is not None
        self._summaries: dict[tuple[str, int], dict[str, tuple[Tensor, ...]]] = {}
        self._in_progress: set[tuple[str, int]] = set()
        self._stopped: set[tuple[str, int]] = set()  # functions' outputs that have the barrier behind them
        self._unreached: set[Tensor] = set()  # tensors known to have no origins
        self._dependent: set[Tensor] = set()
        self._independent: set[Place] = set()
        self._independent_nodes: set[str] = set()  # plain nodes of the main graph
        self._dependent_nodes: dict[str, set[str]] = {}  # plain nodes, by scope

    def origins(self, tensor: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Names of the placeholders or arguments that reach ``tensor`` in its own scope, each with one way there.

        The way runs from ``tensor`` back to the origin and passes through called functions node by node.
        """
        return self._traced(tensor)[0]

    def _traced(self, tensor: Tensor) -> tuple[dict[str, tuple[Tensor, ...]], bool]:
        """The origins of a tensor, and whether the barrier stood in any way."""
        scope = self.graph.scope(tensor.scope)
        stopped = False
        carriers, fed = scope.request_args, self.graph.fed
        found: dict[str, tuple[Tensor, ...]] = {}
        ways: dict[Tensor, tuple[Tensor, tuple[Tensor, ...]] | None] = {tensor: None}
        queue = [tensor]

        def way_to(end: Tensor) -> tuple[Tensor, ...]:
            backwards: list[Tensor] = []
            step: Tensor | None = end
            while step is not None:
                came_from = ways[step]
                if came_from is None or len(backwards) < _LONGEST_WAY:  # of a longer one, only where it begins and ends
                    backwards.append(step)
                if came_from is None:
                    break
                step, inner = came_from
                backwards.extend(reversed(inner[max(0, len(inner) + len(backwards) - _LONGEST_WAY) :]))
            return tuple(reversed(backwards))

        while queue:
            current = queue.pop()
            if current in self._unreached:
                continue
            if self.barrier(current):
                stopped = True
                continue
            if current.node in scope.args:
                if current.node in carriers:
                    found.setdefault(current.node, way_to(current))
                for value in scope.written.get(current.node, ()):
                    if value not in ways:
                        ways[value] = (current, ())
                        queue.append(value)
                continue
            node = self.graph.node(current)
            assert node is not None
            op = node.op
            if op in PLACEHOLDER_OPS or current in fed:
                found.setdefault(current.node, way_to(current))
            if op in SHAPE_OPS:
                continue
            for following, inner in self._back(scope, node, current):
                if following not in ways:
                    ways[following] = (current, inner)
                    queue.append(following)
            if not self._stopped.isdisjoint(self._called(scope, node, current)):
                stopped = True
        if not found and not self._in_progress:
            self._unreached.update(ways)
        return found, stopped

    def _called(self, scope: Scope, node: NodeDef, tensor: Tensor) -> Iterator[tuple[str, int]]:
        """The functions' outputs that a call's output is."""
        callees = self.graph.callees(scope, node)
        index = self.graph.output_index(tensor, node) if callees else 0
        return ((function, index) for function, _ in callees)

    def depends_on_request(self, place: Place) -> bool:
        """Whether anything a client sends reaches the tensor at this place.

        Unlike :meth:`origins` this walk enters called functions and stops at the first placeholder. Every tensor on its
        way there is remembered, for all calls of its function: what moves in one of them is taken to move in all.
        """
        if place in self._independent:
            return False
        leapt: set[str] = set()
        came_from: dict[Place, tuple[Place, tuple[str, dict[str, str]] | None] | None] = {place: None}
        queue = [place]
        while queue:
            current = queue.pop()
            if self._is_known(current) or self._is_origin(current):
                self._remember(current, came_from)
                return True
            plain = self._is_plain(current)
            steps = self._leap(current, leapt) if plain else ((step, None) for step in self._before(current))
            for following, trail in steps:
                if following not in came_from and following not in self._independent:
                    came_from[following] = (current, trail)
                    queue.append(following)
            if len(came_from) > MOST_PLACES:
                return self._depends_through_calls(place)
        self._independent.update(came_from)
        self._independent_nodes |= leapt
        return False

    def _depends_through_calls(self, place: Place) -> bool:
        """The same from what is known of each function as a whole, where there are too many ways through the calls."""
        seen: set[Place] = set()
        queue = [place]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            scope = self.graph.scope(current.tensor.scope)
            for name in self.origins(current.tensor):
                if name not in scope.args or not current.calls:
                    return True
                above = self.graph.caller_input(Place(Tensor(scope.name, name, "", 0), current.calls))
                queue.extend([above] if above is not None else [])
        return False

    @cached_property
    def _fed_nodes(self) -> frozenset[str]:
        return frozenset(tensor.node for tensor in self.graph.fed)

    def _is_known(self, place: Place) -> bool:
        tensor = place.tensor
        return tensor in self._dependent or tensor.node in self._dependent_nodes.get(tensor.scope, ())

    def _remember(
        self, end: Place, came_from: dict[Place, tuple[Place, tuple[str, dict[str, str]] | None] | None]
    ) -> None:
        place = end
        while True:
            self._dependent.add(place.tensor)
            step = came_from[place]
            if step is None:
                return
            place, trail = step
            if trail is not None:
                name, parents = trail
                while name in parents:
                    self._dependent_nodes.setdefault(place.tensor.scope, set()).add(name)
                    name = parents[name]

    def _is_plain(self, place: Place) -> bool:
        """Whether every output of the node depends on every input, and nothing about the node is particular."""
        scope = self.graph.scope(place.tensor.scope)
        node = scope.nodes.get(place.tensor.node)
        return not self._has_barrier and node is not None and self.graph.is_plain_op(node.op)

    def _leap(self, place: Place, leapt: set[str]) -> Iterator[tuple[Place, tuple[str, dict[str, str]]]]:
        """From a plain node back over all plain nodes at once, to arguments, placeholders, calls and known nodes.

        Those of the main graph are noted in ``leapt``.

        Plain nodes are told apart by name alone. Parsing each of their references would cost most of the time that
        reading a deep network takes (benchmarks/NOTES.md).
        """
        scope = self.graph.scope(place.tensor.scope)
        nodes, args, name = scope.nodes, scope.args, place.tensor.node
        stops = self._fed_nodes if scope.name == MAIN else frozenset[str]()
        known = self._dependent_nodes.setdefault(scope.name, set())
        parents: dict[str, str] = {}
        seen = leapt if scope.name == MAIN else set()
        still = self._independent_nodes if scope.name == MAIN else frozenset[str]()
        seen.add(name)
        queue = [name] if nodes[name].op not in SHAPE_OPS else []
        while queue:
            name = queue.pop()
            for ref in nodes[name].input:
                before = ref.partition(":")[0]
                if before in seen or before in still or before.startswith("^"):
                    continue
                node = nodes.get(before)
                if node is not None and before not in stops and before not in known:
                    op = node.op
                    if self.graph.is_plain_op(op):
                        seen.add(before)
                        if op not in SHAPE_OPS:
                            parents[before] = name
                            queue.append(before)
                        continue
                if before in args and before not in scope.request_args:
                    continue
                tensor = scope.tensor(ref)
                assert tensor is not None
                yield Place(tensor, place.calls), (name, parents)

    def _is_origin(self, place: Place) -> bool:
        """A placeholder, or an argument of a function that was entered from nowhere."""
        if self.barrier(place.tensor):
            return False
        if self.graph.node(place.tensor) is None:
            return not place.calls and place.tensor.node in self.graph.scope(place.tensor.scope).request_args
        return self.graph.is_request(place.tensor)

    def _before(self, place: Place) -> Iterator[Place]:
        """What the tensor at a place is computed from, one step back, entering functions and leaving them again."""
        tensor, calls = place
        scope = self.graph.scope(tensor.scope)
        if self.barrier(tensor):
            return
        if tensor.node in scope.args:
            above = self.graph.caller_input(place) if tensor.node in scope.request_args else None
            if above is not None:
                yield above
            return
        node = self.graph.node(tensor)
        assert node is not None
        if node.op in SHAPE_OPS:
            return
        callees = self.graph.callees(scope, node)
        if len(callees) == 1:
            function, offset = callees[0]
            call = Call(scope.name, node.name, offset)
            if call not in calls:  # else a function that calls itself, for which its summary must do
                yield Place(self.graph.returned(function, self.graph.output_index(tensor, node)), (*calls, call))
                return
        for step, _ in self._back(scope, node, tensor):
            yield Place(step, calls)

    def _back(self, scope: Scope, node: NodeDef, tensor: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The inputs that one output of a node depends on, each with the way through the called function."""
        inputs = scope.inputs(node)
        index = self.graph.output_index(tensor, node)
        if node.op == "IdentityN":
            if index < len(inputs):
                yield inputs[index], ()
            return
        if node.op in WHILE_OPS:
            for position in self._while_positions(node, index):
                if position < len(inputs):
                    yield inputs[position], ()
            return
        callees = self.graph.callees(scope, node)
        if not callees:
            for following in inputs:
                yield following, ()
            return
        if inputs and callees[0][1] and not all(self._is_shielded(function, index) for function, _ in callees):
            yield inputs[0], ()  # the predicate decides which branch answers
        for function, offset in callees:
            args = self.graph.scope(function).args
            for name, way in self.summary(function, index).items():
                position = args[name] + offset
                if position < len(inputs):
                    yield inputs[position], way

    def summary(self, function: str, index: int) -> dict[str, tuple[Tensor, ...]]:
        """Arguments on which a function's output number ``index`` depends, each with one way through the body."""
        key = (function, index)
        if key in self._in_progress:  # recursion: assume that everything matters
            return dict.fromkeys(self.graph.scope(function).args, ())
        if key not in self._summaries:
            self._in_progress.add(key)
            try:
                origins, stopped = self._traced(self.graph.returned(function, index))
                args = self.graph.scope(function).args
                self._summaries[key] = {name: way for name, way in origins.items() if name in args}
                if stopped:
                    self._stopped.add(key)
            finally:
                self._in_progress.discard(key)
        return self._summaries[key]

    def _is_shielded(self, function: str, index: int) -> bool:
        """Whether a function's output number ``index`` lies behind the barrier, and is not merely a constant.

        A condition that only chooses between such outputs tells nothing that the barrier would have kept back.
        """
        return not self.summary(function, index) and (function, index) in self._stopped

    def _while_positions(self, node: NodeDef, index: int) -> set[int]:
        """Loop variables whose first value can reach output ``index`` of a While node."""
        body, cond = node.attr["body"].func.name, node.attr["cond"].func.name
        args = self.graph.scope(body).args
        cond_args = self.graph.scope(cond).args
        reached = {index} | {cond_args[name] for name in self.summary(cond, 0)}
        while True:
            more = {args[name] for position in reached for name in self.summary(body, position)}
            if more <= reached:
                return reached
            reached |= more
