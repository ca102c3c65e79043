"""Read access to one MetaGraphDef: tensors, producers, functions, and the true source of a tensor.

A SavedModel holds a main graph and a library of functions that it calls. Both are lists of NodeDefs, but they name
tensors differently (``node:0`` in the main graph, ``node:out_arg:0`` in a function body). :class:`Graph` hides that:
everything here speaks of :class:`Tensor`, and of :class:`Place` where it matters through which calls a tensor was
reached. Nothing is executed and no op needs to be registered, so models with custom ops are read like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
MOST_PLACES = 100_000
"""Ways through calls that are followed from one tensor."""

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
        self._known: dict[str, dict[Place, Any]] = {}

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
        *_, found = self.handed_on(place)
        return found

    def handed_on(self, place: Place) -> Iterator[Place]:
        """A tensor and every earlier one that holds the same value, back to the one that truly produces it."""
        seen: set[Place] = set()
        while place not in seen:
            seen.add(place)
            yield place
            step = self._step_back(place)
            if step is None:
                return
            if len(seen) > _MOST_STEPS:
                raise too_tangled(f"tensor {place.tensor} is handed on more than {_MOST_STEPS} times")
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

    def known(self, what: str) -> dict[Place, Any]:
        """Where a module keeps what it has found out about places; emptied when the graph is edited."""
        return self._known.setdefault(what, _KnownPlaces())

    @cached_property
    def known_flow(self) -> dict[str, Any]:
        """Where :func:`mpru_tf.saved_model.dataflow.of_requests` keeps its walk; gone when the graph is edited."""
        return {}

    def edited(self, scope: Scope, added: Sequence[NodeDef] = ()) -> None:
        """Note that inputs in a scope were rewired and nodes were appended to it."""
        scope.nodes.update((node.name, node) for node in added)
        scope.forget_inputs()
        if scope.function is not None:
            scope.outputs = [scope.function.ret[output.name] for output in scope.function.signature.output_arg]
        self._known.clear()
        self.__dict__.pop("known_flow", None)

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
        if not any(node.op in ("Enter", "RefEnter") for node in scope.nodes.values()):
            return False  # as in nearly all graphs; the walk would parse every reference in this one
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
        if len(self) >= MOST_PLACES:
            raise too_tangled(f"there are more than {MOST_PLACES} ways through its calls")
        super().__setitem__(place, value)


def too_tangled(received: str) -> CorruptModelError:
    """The refusal of a graph through which there are too many ways."""
    return CorruptModelError(
        explain(
            "The model's functions call each other in more ways than can be followed.",
            received=received,
            valid="a graph as an exporter writes it",
            hint="Export the model again with its functions inlined.",
        )
    )
