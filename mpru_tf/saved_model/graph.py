"""Read access to one MetaGraphDef: tensors, producers, functions, and what a tensor is computed from.

A SavedModel holds a main graph and a library of functions that it calls. Both are lists of NodeDefs, but they name
tensors differently (``node:0`` in the main graph, ``node:out_arg:0`` in a function body). :class:`Graph` hides that:
everything here speaks of :class:`Tensor`, and of :class:`Place` where it matters through which calls a tensor was
reached. Nothing is executed and no op needs to be registered, so models with custom ops are read like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from mpru_tf.errors import CorruptModelError, explain

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef

MAIN = ""
"""Name of the scope that is the main graph."""

# Ops whose output is their input, number for number (Cast changes the dtype, which is for the splice to respect).
IDENTITY_OPS = frozenset(
    {
        "Identity",
        "StopGradient",
        "PreventGradient",
        "CheckNumerics",
        "CheckNumericsV2",
        "Snapshot",
        "EnsureShape",
        "DeepCopy",
        "Cast",
        "OptimizationBarrier",
        "XlaOptimizationBarrier",
    }
)
# Ops that tell only how large their input is: nothing about a class gets through them.
SHAPE_OPS = frozenset(
    {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "BroadcastGradientArgs", "TensorArraySizeV3"}
)
# TensorFlow 1's control flow: what comes out is the first input, at the time when it is let through.
FIRST_INPUT_OPS = frozenset(
    {"Enter", "RefEnter", "Exit", "RefExit", "Switch", "RefSwitch", "NextIteration", "RefNextIteration", "LoopCond"}
)
PLACEHOLDER_OPS = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
_LIFECYCLE_SIGNATURES = frozenset({"__saved_model_init_op", "__saved_model_train_op"})
CALL_OPS = frozenset({"PartitionedCall", "StatefulPartitionedCall", "TPUPartitionedCall", "BatchFunction"})
IF_OPS = frozenset({"If", "StatelessIf"})
CASE_OPS = frozenset({"Case", "StatelessCase"})
WHILE_OPS = frozenset({"While", "StatelessWhile"})

_PARTICULAR_OPS = PLACEHOLDER_OPS | CALL_OPS | IF_OPS | CASE_OPS | WHILE_OPS | {"IdentityN"}
# Ops that put their second input into the variable that is their first.
_WRITE_OPS = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
# Beyond these a graph was made to be walked for ever; honest ones need some hundreds and some thousands.
_MOST_STEPS = 10_000
_MOST_PLACES = 100_000
_LONGEST_WAY = 1000  # shown of a way from an output to a request
_DT_RESOURCE = 20  # types.proto; importing it would import TensorFlow


class Tensor(NamedTuple):
    """One output of one node: ``arg`` is the output argument's name in a function body and '' in the main graph."""

    scope: str
    node: str
    arg: str
    port: int

    def __str__(self) -> str:
        where = f"{self.scope}/" if self.scope else ""
        return f"{where}{self.node}:{self.port}"


class Call(NamedTuple):
    """One node that calls a function: which scope it lies in, and where the callee's arguments begin in its inputs."""

    scope: str
    node: str
    offset: int


class Place(NamedTuple):
    """A tensor together with the calls through which it was reached, outermost first."""

    tensor: Tensor
    calls: tuple[Call, ...] = ()


@dataclass
class Scope:
    """The main graph or one function body."""

    name: str
    node_defs: Any
    args: dict[str, int] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    function: FunctionDef | None = None

    _inputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> dict[str, NodeDef]:
        nodes = {node.name: node for node in self.node_defs}
        if len(nodes) < len(self.node_defs):
            raise CorruptModelError(
                explain(
                    f"Two nodes of {self.name or 'the main graph'} have the same name.",
                    received=f"{len(self.node_defs)} nodes with {len(nodes)} names",
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            )
        return nodes

    def tensor(self, ref: str) -> Tensor | None:
        """Parse an input reference; None for a control input."""
        if ref.startswith("^"):
            return None
        name, _, rest = ref.partition(":")
        try:
            if self.name == MAIN:
                return Tensor(MAIN, name, "", int(rest) if rest else 0)
            arg, _, index = rest.partition(":")
            if not arg or arg.isdigit():
                return Tensor(self.name, name, "", int(arg or 0))
            return Tensor(self.name, name, arg, int(index) if index else 0)
        except ValueError:
            raise CorruptModelError(
                explain(
                    f"Something in {self.name or 'the main graph'} reads what is no tensor's name.",
                    received=repr(ref[:100]),
                    valid="NODE:PORT in the main graph, NODE:OUTPUT:PORT in a function",
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            ) from None

    def ref(self, tensor: Tensor) -> str:
        """Write a tensor the way inputs of this scope name it."""
        if self.name == MAIN:
            return tensor.node if tensor.port == 0 else f"{tensor.node}:{tensor.port}"
        return f"{tensor.node}:{tensor.arg}:{tensor.port}" if tensor.arg else tensor.node

    def inputs(self, node: NodeDef) -> list[Tensor]:
        """The data inputs of a node, in order."""
        name = node.name
        if name not in self._inputs:
            self._inputs[name] = [tensor for ref in node.input if (tensor := self.tensor(ref)) is not None]
        return self._inputs[name]

    def forget_inputs(self) -> None:
        """Parse input references anew from now on."""
        self._inputs.clear()

    @cached_property
    def written(self) -> dict[str, list[Tensor]]:
        """What a function's body writes into the variables among its arguments; a body runs all of its writes."""
        found: dict[str, list[Tensor]] = {}
        if len(self.request_args) < len(self.args):
            for node in self.node_defs:
                if node.op in _WRITE_OPS and len(inputs := self.inputs(node)) > 1:
                    found.setdefault(inputs[0].node, []).append(inputs[1])
        return found

    @cached_property
    def request_args(self) -> frozenset[str]:
        """Arguments that can carry what a client sent: all but handles of variables and tables."""
        if self.function is None:
            return frozenset()
        return frozenset(arg.name for arg in self.function.signature.input_arg if arg.type != _DT_RESOURCE)


class Graph:
    """One MetaGraphDef, seen as scopes that call each other."""

    def __init__(self, meta_graph: MetaGraphDef, index: int = 0) -> None:
        self.meta_graph = meta_graph
        self.index = index
        self._functions = {function.signature.name: function for function in meta_graph.graph_def.library.function}
        self._scopes: dict[str, Scope] = {}
        self._takes_functions: dict[str, bool] = {}

    # ---------------------------------------------------------------------------------------------- names to things
    @property
    def functions(self) -> dict[str, FunctionDef]:
        return self._functions

    def scope(self, name: str) -> Scope:
        """The main graph (``MAIN``) or the body of a library function."""
        if name not in self._scopes:
            self._scopes[name] = self._read_scope(name)
        return self._scopes[name]

    def _read_scope(self, name: str) -> Scope:
        if name == MAIN:
            return Scope(MAIN, self.meta_graph.graph_def.node)
        function = self._functions.get(name)
        if function is None:
            raise CorruptModelError(
                explain(
                    "The graph calls a function that its library does not hold.",
                    received=name,
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            )
        signature = function.signature
        args = {arg.name: position for position, arg in enumerate(signature.input_arg)}
        outputs = []
        for output in signature.output_arg:
            if output.name not in function.ret:
                raise CorruptModelError(
                    explain(
                        f"Function {name} does not say what it returns as {output.name!r}.", hint="Export it again."
                    )
                )
            outputs.append(function.ret[output.name])
        return Scope(name, function.node_def, args, outputs, function)

    def node(self, tensor: Tensor) -> NodeDef | None:
        """The node that produces a tensor, or None for a function's argument."""
        scope = self.scope(tensor.scope)
        if tensor.node in scope.args:
            return None
        try:
            return scope.nodes[tensor.node]
        except KeyError:
            raise CorruptModelError(
                explain(
                    f"A node reads a tensor that nothing in {tensor.scope or 'the main graph'} produces.",
                    received=tensor.node,
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            ) from None

    def find_tensor(self, name: str) -> Tensor | None:
        """The tensor that a person names as :func:`str` writes it; the port may be left out. None if there is none."""
        for scope_name in sorted((name_ for name_ in self._functions if name.startswith(f"{name_}/")), key=len)[::-1]:
            found = self._find_in(self.scope(scope_name), name.removeprefix(f"{scope_name}/"))
            if found is not None:
                return found
        return self._find_in(self.scope(MAIN), name)

    def _find_in(self, scope: Scope, name: str) -> Tensor | None:
        node_name, _, port = name.partition(":")
        node = scope.nodes.get(node_name)
        if node is None or not (port.isdigit() or not port):
            return None
        number = int(port or 0)
        if scope.name == MAIN:
            return Tensor(MAIN, node_name, "", number)
        used = (tensor for other in scope.node_defs for tensor in scope.inputs(other))
        shown = (tensor for ref in scope.outputs if (tensor := scope.tensor(ref)) is not None)
        return next((t for t in itertools.chain(used, shown) if (t.node, t.port) == (node_name, number)), None)

    def signature_tensor(self, name: str) -> Tensor:
        """The main-graph tensor that a SignatureDef's TensorInfo names."""
        return _data(self.scope(MAIN).tensor(name), name)

    @cached_property
    def fed(self) -> frozenset[Tensor]:
        """Main-graph tensors whose values clients send: mostly placeholders, but a SignatureDef may name any tensor."""
        return frozenset(
            self.signature_tensor(info.name)
            for signature in self.meta_graph.signature_def.values()
            for info in signature.inputs.values()
            if info.name
        )

    def is_request(self, tensor: Tensor) -> bool:
        """Whether a tensor is what a client sends."""
        node = self.node(tensor)
        return (node is not None and node.op in PLACEHOLDER_OPS) or tensor in self.fed

    # --------------------------------------------------------------------------------------------------- calls
    def callees(self, scope: Scope, node: NodeDef) -> list[tuple[str, int]]:
        """Functions whose results are this node's outputs, each with the input at which its arguments begin."""
        if node.op in CALL_OPS:
            return [(node.attr["f"].func.name, 0)]
        if node.op in self._functions:
            return [(node.op, 0)]
        if node.op in IF_OPS:
            return [(node.attr[branch].func.name, 1) for branch in ("then_branch", "else_branch")]
        if node.op in CASE_OPS:
            return [(branch.name, 1) for branch in node.attr["branches"].list.func]
        return []

    def is_plain_op(self, op: str) -> bool:
        """Whether all outputs of such a node depend on all of its inputs: it calls nothing and is no placeholder."""
        return op not in _PARTICULAR_OPS and op not in self._functions

    def output_index(self, tensor: Tensor, node: NodeDef) -> int:
        """Flat position of a call's output (function bodies name it by output argument and position)."""
        if tensor.arg in ("", "output") or node.op not in self._functions:
            return tensor.port
        names = [output.name for output in self._functions[node.op].signature.output_arg]
        return names.index(tensor.arg) + tensor.port if tensor.arg in names else tensor.port

    def returned(self, function: str, index: int) -> Tensor:
        """What a function returns as its output number ``index``."""
        scope = self.scope(function)
        if not 0 <= index < len(scope.outputs):
            raise CorruptModelError(
                explain(
                    f"A node reads output {index} of function {function}, which has {len(scope.outputs)}.",
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            )
        return _data(scope.tensor(scope.outputs[index]), scope.outputs[index])

    def caller_input(self, place: Place) -> Place | None:
        """Where a function's argument comes from, one call up; None at the outermost scope."""
        if not place.calls:
            return None
        call = place.calls[-1]
        scope = self.scope(call.scope)
        position = self.scope(place.tensor.scope).args[place.tensor.node] + call.offset
        inputs = scope.inputs(scope.nodes[call.node])
        if position >= len(inputs):
            raise CorruptModelError(
                explain(
                    f"Node {call.node} passes {len(inputs)} inputs to function {place.tensor.scope}, which wants more.",
                    hint="The saved_model.pb is damaged; export the model again.",
                )
            )
        return Place(inputs[position], place.calls[:-1])

    def source(self, place: Place) -> Place:
        """Follow a value back through identity-like ops and calls to the tensor that truly produces it.

        A callee that only passes an argument through is left again: the result then lies in the caller.
        """
        seen: set[Place] = set()
        while place not in seen:
            seen.add(place)
            step = self._step_back(place)
            if step is None:
                return place
            if len(seen) > _MOST_STEPS:
                raise _too_tangled(f"tensor {place.tensor} is handed on more than {_MOST_STEPS} times")
            place = step
        raise CorruptModelError(explain(f"Tensor {place.tensor} is computed from itself.", hint="Export it again."))

    def _step_back(self, place: Place) -> Place | None:
        tensor, calls = place
        scope = self.scope(tensor.scope)
        if tensor.node in scope.args:
            return self.caller_input(place)
        node = self.node(tensor)
        assert node is not None
        if tensor in self.fed:
            return None
        if node.op in IDENTITY_OPS or node.op == "IdentityN":
            inputs = scope.inputs(node)
            position = tensor.port if node.op == "IdentityN" else 0
            return Place(inputs[position], calls) if position < len(inputs) else None
        if node.op in WHILE_OPS:
            return self._around_loop(scope, node, place)
        callees = self.callees(scope, node)
        if len(callees) == 1:
            function, offset = callees[0]
            if any(call.scope == scope.name and call.node == node.name for call in calls):
                return None  # a function that calls itself: no tensor in it is final
            inner = self.returned(function, self.output_index(tensor, node))
            return Place(inner, (*calls, Call(scope.name, node.name, offset)))
        return None

    def _around_loop(self, scope: Scope, node: NodeDef, place: Place) -> Place | None:
        """A loop variable that no turn changes is what it was before the loop."""
        index = self.output_index(place.tensor, node)
        body = node.attr["body"].func.name
        inputs = scope.inputs(node)
        call = Call(scope.name, node.name, 0)
        if call in place.calls or index >= len(inputs):
            return None
        kept = self.returned(body, index)
        inner = self.scope(body)
        seen: set[Tensor] = set()
        while kept not in seen and kept.node not in inner.args:
            seen.add(kept)
            made_by = inner.nodes.get(kept.node)
            if made_by is None or made_by.op not in IDENTITY_OPS - {"Cast"} or not inner.inputs(made_by):
                return None
            kept = inner.inputs(made_by)[0]
        return Place(inputs[index], place.calls) if inner.args.get(kept.node) == index else None

    def inputs_of(self, place: Place) -> list[Place]:
        """The data inputs of the node that produces a place's tensor."""
        node = self.node(place.tensor)
        if node is None:
            return []
        return [Place(tensor, place.calls) for tensor in self.scope(place.tensor.scope).inputs(node)]

    @cached_property
    def known_shapes(self) -> dict[Place, tuple[int | None, ...] | None]:
        """What :mod:`mpru_tf.saved_model.shapes` has found out already; it lives as long as the graph is unedited."""
        return _KnownPlaces()

    @cached_property
    def known_kinds(self) -> dict[Place, str]:
        """What :mod:`mpru_tf.saved_model.candidates` has found out already; it lives as long."""
        return _KnownPlaces()

    @cached_property
    def requests(self) -> Dataflow:
        """What depends on a request in this graph as it stands."""
        return Dataflow(self)

    def edited(self, scope: Scope, added: Sequence[NodeDef] = ()) -> None:
        """Note that inputs in a scope were rewired and nodes were appended to it."""
        scope.nodes.update((node.name, node) for node in added)
        scope.forget_inputs()
        if scope.function is not None:
            scope.outputs = [scope.function.ret[output.name] for output in scope.function.signature.output_arg]
        for name in ("requests", "known_shapes", "known_kinds"):
            self.__dict__.pop(name, None)

    def dtype(self, tensor: Tensor) -> int | None:
        """The DataType of a tensor, from the op that produces it; None where that is not known."""
        node = self.node(tensor)
        if node is None:
            function = self.scope(tensor.scope).function
            assert function is not None
            return next((arg.type for arg in function.signature.input_arg if arg.name == tensor.node), None)
        listed = self.meta_graph.meta_info_def.stripped_op_list.op  # what the model says itself of ops unknown here
        definition = op_def(node.op) or next((op for op in listed if op.name == node.op), None)
        if definition is None:
            return node.attr["T"].type if "T" in node.attr else None
        outputs = [arg for arg in definition.output_arg if arg.name == tensor.arg] if tensor.arg else []
        if not (outputs or definition.output_arg):
            return None
        output = outputs[0] if outputs else definition.output_arg[min(tensor.port, len(definition.output_arg) - 1)]
        if output.type_list_attr:  # If, While, IdentityN: one type per output
            types = node.attr[output.type_list_attr].list.type
            return int(types[tensor.port]) if tensor.port < len(types) else None
        if output.type:
            return int(output.type)
        if output.type_attr in node.attr:
            return int(node.attr[output.type_attr].type)
        # Left out of the node because it has its default value.
        return next((attr.default_value.type for attr in definition.attr if attr.name == output.type_attr), None)

    def readers(self, tensor: Tensor) -> list[NodeDef]:
        """Nodes of the same scope that read a tensor."""
        scope = self.scope(tensor.scope)
        return [node for node in scope.node_defs if tensor in scope.inputs(node)]

    def in_loop(self, tensor: Tensor) -> bool:
        """Whether a tensor is made anew in each turn of a TensorFlow 1 while loop (between its Enter and its Exit)."""
        scope = self.scope(tensor.scope)
        seen = {tensor.node}
        queue = [tensor.node]
        while queue:
            node = scope.nodes.get(queue.pop())
            if node is None or node.op in ("Exit", "RefExit"):
                continue
            if node.op in ("Enter", "RefEnter"):
                return True
            before = {made_by.node for made_by in scope.inputs(node)} - seen
            seen |= before
            queue.extend(before)
        return False

    def is_shown(self, tensor: Tensor) -> bool:
        """Whether a tensor leaves its scope as it is: returned by its function, or named by a SignatureDef."""
        scope = self.scope(tensor.scope)
        if scope.function is not None:
            return any(scope.tensor(ref) == tensor for ref in scope.outputs)
        signatures = self.meta_graph.signature_def.values()
        names = (info.name for signature in signatures for info in signature.outputs.values())
        return any(scope.tensor(name) == tensor for name in names if name)

    def function_references(self, node: NodeDef) -> Iterator[str]:
        """Names of every function that a node mentions, as its op or in its attributes."""
        op = node.op
        if op in self._functions:
            yield op
        if op not in self._takes_functions:
            self._takes_functions[op] = _takes_functions(op)
        if not self._takes_functions[op]:
            return
        for value in node.attr.values():
            kind = value.WhichOneof("value")
            if kind == "func":
                yield value.func.name
            elif kind == "list":
                yield from (function.name for function in value.list.func)


def _data(tensor: Tensor | None, ref: str) -> Tensor:
    """A reference that must be to a tensor; None stands for a control input."""
    if tensor is None:
        raise CorruptModelError(
            explain(
                "A control input stands where a value should be answered.",
                received=repr(ref[:100]),
                hint="The saved_model.pb is damaged; export the model again.",
            )
        )
    return tensor


def is_for_clients(name: str, signature: SignatureDef) -> bool:
    """Whether a server answers a SignatureDef; the loader's and the trainer's own ones have no method name."""
    return name not in _LIFECYCLE_SIGNATURES or bool(signature.method_name)


def op_def(op: str) -> OpDef | None:
    """The definition of a registered op, or None for one whose library is not linked in."""
    # There is no public registry of OpDefs (TensorFlow 2.19 to 2.21).
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op)


def _takes_functions(op: str) -> bool:
    """Whether an op has an attribute that names functions; True for ops that are not registered here."""
    definition = op_def(op)
    return definition is None or any(attr.type in ("func", "list(func)") for attr in definition.attr)


class _KnownPlaces(dict[Place, Any]):
    """What is known about each place; places are as many as there are ways through the calls, which can be too many."""

    def __setitem__(self, place: Place, value: object) -> None:
        if len(self) >= _MOST_PLACES:
            raise _too_tangled(f"there are more than {_MOST_PLACES} ways through its calls")
        super().__setitem__(place, value)


def _too_tangled(received: str) -> CorruptModelError:
    return CorruptModelError(
        explain(
            "The model's functions call each other in more ways than can be followed.",
            received=received,
            valid="a graph as an exporter writes it",
            hint="Export the model again with its functions inlined.",
        )
    )


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
            if len(came_from) > _MOST_PLACES:
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
