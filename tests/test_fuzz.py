"""Bad input never hurts: mutants, graphs made to be walked for ever, and both from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import fuzzing
import pytest
from conftest import ModelStore
from fuzzing import Original
from graph_protos import FLOAT, function, graph, node
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import mpru_tf
from mpru_tf.errors import CorruptModelError, MPRUError, UnsupportedModelError
from mpru_tf.saved_model import structure

SEEDS = 400
CHUNK = 40


# ------------------------------------------------------------------------------------------------------------ mutants
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    return fuzzing.originals(tmp_path_factory.mktemp("originals"), fuzzing.makers())


def test_originals_are_honest(made: list[Original], tmp_path: Path) -> None:
    """Otherwise nothing would be learnt from their mutants."""
    outcomes = {}
    for original in made:
        if original.name not in ("embedding", "multi_label", "filtered"):
            result = mpru_tf.forget(original.base, [1], into=tmp_path / original.name, load_check=False)
            outcomes[original.name] = mpru_tf.verify(result.path, load_check=False).passed
    assert set(outcomes.values()) == {True}


def test_mutants_are_the_same_for_the_same_seed_and_others_for_others(made: list[Original]) -> None:
    data = [original.data for original in made]
    once, again = ([fuzzing.mutant(seed, data) for seed in range(50)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 45


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_mutants_are_refused_in_words_or_come_out_whole(made: list[Original], tmp_path: Path, first: int) -> None:
    outcomes = [fuzzing.try_one(seed, made, tmp_path) for seed in range(first, first + CHUNK)]
    wrong = [f"{outcome.wrong} (again: {fuzzing.again(outcome.seed)})" for outcome in outcomes if outcome.wrong]
    assert wrong == []
    assert 3 < sum(outcome.forgot == "ok" for outcome in outcomes) < CHUNK - 3


# ----------------------------------------------------------------------------------- graphs made to be walked for ever
def constant(name: str, *shape: int) -> NodeDef:
    result = node(name, "Const", dtype=FLOAT)
    tensor = result.attr["value"].tensor
    tensor.dtype = FLOAT
    tensor.float_val.append(0.5)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return result


def model(
    nodes: Iterable[NodeDef], functions: Iterable[FunctionDef] = (), outputs: Iterable[str] = ("p",)
) -> SavedModel:
    """A model of an input ``x`` [batch, 8]."""
    x = node("x", "Placeholder", dtype=FLOAT)
    for size in (-1, 8):
        x.attr["shape"].shape.dim.add(size=size)
    read = graph([x, *nodes], functions, {name: f"{name}:0" for name in outputs}, {"x": "x:0"})
    read.meta_graph.meta_info_def.tags.append("serve")
    for info in read.meta_graph.signature_def["serving_default"].outputs.values():
        info.dtype, info.tensor_shape.unknown_rank = FLOAT, True
    return SavedModel(saved_model_schema_version=1, meta_graphs=[read.meta_graph])


def scores(features: str = "x") -> list[NodeDef]:
    """Class scores ``z`` of ten classes, and their Softmax ``p``."""
    return [constant("w", 8, 10), node("z", "MatMul", features, "w", T=FLOAT), node("p", "Softmax", "z", T=FLOAT)]


CALL = node("h", "PartitionedCall", "x", f="f0")
SOFTMAX_OF_CALL = node("p", "Softmax", "h", T=FLOAT)


def relu(name: str) -> FunctionDef:
    return function(name, ["x"], [node("r", "Relu", "x", T=FLOAT)], y="r:activations:0")


def identity(name: str) -> FunctionDef:
    return function(name, ["x"], [], y="x")


def fixed(name: str) -> FunctionDef:
    return function(name, ["x"], [constant("r", 1)], y="r:output:0")


def linear(name: str) -> FunctionDef:
    body = [constant("w", 8, 10), node("r", "MatMul", "x", "w:output:0", T=FLOAT)]
    return function(name, ["x"], body, y="r:product:0")


def twice(leaf: Callable[[str], FunctionDef], combine: str = "", depth: int = 30) -> list[FunctionDef]:
    """Functions f0, f1 ... each of which calls the next twice: one after the other, or combined by an op."""
    functions = [leaf(f"f{depth}")]
    for number in range(depth):
        following = f"f{number + 1}"
        first = node("a", "PartitionedCall", "x", f=following)
        second = node("b", "PartitionedCall", "x" if combine else "a:output:0", f=following)
        body = [first, second, *([node("c", combine, "a:output:0", "b:output:0", T=FLOAT)] if combine else [])]
        functions.append(function(f"f{number}", ["x"], body, y="c:z:0" if combine else "b:output:0"))
    return functions


def deep(depth: int) -> list[FunctionDef]:
    """Functions that each call the next once."""
    functions = [relu(f"f{depth}")]
    for number in range(depth):
        call = node("a", "PartitionedCall", "x", f=f"f{number + 1}")
        body = [call, node("r", "Relu", "a:output:0", T=FLOAT)]
        functions.append(function(f"f{number}", ["x"], body, y="r:activations:0"))
    return functions


def nested(op: str, branches: int, depth: int = 30) -> list[FunctionDef]:
    """Conditions within conditions; of a Case, the last branch answers a constant."""
    functions = [linear(f"f{depth}"), function("fixed", ["x"], [constant("r", 1, 10)], y="r:output:0")]
    for number in range(depth):
        following = f"f{number + 1}"
        if op == "If":
            condition = node("i", op, "c:output:0", "x", then_branch=following, else_branch=following)
        else:
            condition = node("i", op, "c:output:0", "x", branches=[following] * (branches - 1) + ["fixed"])
        functions.append(function(f"f{number}", ["x"], [constant("c"), condition], y="i:output:0"))
    return functions


def chain(length: int, op: str, first: str, *more: str) -> list[NodeDef]:
    return [node(f"r{at}", op, f"r{at - 1}" if at else first, *more, T=FLOAT) for at in range(length)]


def shown(length: int, op: str, first: str, *nodes: NodeDef) -> SavedModel:
    """A chain of which each step is an output too."""
    names = [f"r{at}" for at in range(length)]
    return model([*scores(), *nodes, *chain(length, op, first)], outputs=["p", *names])


HOSTILE: dict[str, Callable[[], SavedModel]] = {
    "identities called twice": lambda: model([CALL, *scores("h")], twice(identity)),
    "layers called twice": lambda: model([CALL, *scores("h")], twice(relu)),
    "layers called twice and added": lambda: model([CALL, *scores("h")], twice(relu, "AddV2")),
    "constants called twice and added": lambda: model([CALL, *scores("h")], twice(fixed, "AddV2")),
    "constants called twice and shown": lambda: model([CALL, *scores()], twice(fixed, "AddV2"), ["p", "h"]),
    "scores called twice and added": lambda: model([CALL, SOFTMAX_OF_CALL], twice(linear, "AddV2")),
    "scores called twice, added and shown": lambda: model([CALL], twice(linear, "AddV2"), ["h"]),
    "scores called twice, the larger one": lambda: model([CALL, SOFTMAX_OF_CALL], twice(linear, "Maximum")),
    "calls 1500 deep": lambda: model([CALL, *scores("h")], deep(1500)),
    "a function that calls itself": lambda: model([CALL, *scores("h")], [_calling("f0", "f0")]),
    "functions that call each other": lambda: model(
        [CALL, *scores("h")], [_calling("f0", "f1"), _calling("f1", "f0")]
    ),
    "a node that reads itself": lambda: model([node("h", "AddV2", "x", "h", T=FLOAT), *scores("h")]),
    "nodes that read each other": lambda: model(
        [node("h", "AddV2", "x", "g", T=FLOAT), node("g", "Relu", "h", T=FLOAT), *scores("h")]
    ),
    "identities of each other": lambda: model(
        [node("h", "Identity", "g", T=FLOAT), node("g", "Identity", "h", T=FLOAT), *scores("h")]
    ),
    "a long chain of layers": lambda: model([*chain(100_000, "Relu", "x"), *scores("r99999")]),
    "a long chain of identities": lambda: model([*chain(100_000, "Identity", "x"), *scores("r99999")]),
    "a long chain behind the scores": lambda: model(
        [*scores(), *chain(100_000, "AddV2", "z", "z"), node("q", "Softmax", "r99999", T=FLOAT)], outputs=["q"]
    ),
    "a ladder": lambda: model(
        [*scores(), *(node(f"r{at}", "AddV2", *[f"r{at - 1}" if at else "z"] * 2, T=FLOAT) for at in range(3000)),
         node("q", "Softmax", "r2999", T=FLOAT)],
        outputs=["q"],
    ),
    "many outputs": lambda: model(
        [*scores(), *(node(f"o{at}", "Identity", "p", T=FLOAT) for at in range(20_000))],
        outputs=[f"o{at}" for at in range(20_000)],
    ),
    "many outputs along constants": lambda: shown(3000, "Relu", "c", constant("c", 1)),
    "many outputs along identities of a constant": lambda: shown(3000, "Identity", "c", constant("c", 1)),
    "conditions within conditions": lambda: model([CALL, SOFTMAX_OF_CALL], nested("If", 2)),
    "conditions within conditions, shown": lambda: model([CALL], nested("If", 2), ["h"]),
    "cases within cases": lambda: model([CALL, SOFTMAX_OF_CALL], nested("Case", 3)),
}  # fmt: skip


def _calling(name: str, other: str) -> FunctionDef:
    body = [node("a", "PartitionedCall", "x", f=other), node("r", "Relu", "a:output:0", T=FLOAT)]
    return function(name, ["x"], body, y="r:activations:0")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_graph_is_walked_for_ever(tmp_path: Path, name: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(HOSTILE[name]().SerializeToString())
    for act in (lambda: mpru_tf.inspect(tmp_path), lambda: mpru_tf.forget(tmp_path, [1], load_check=False)):
        refused: MPRUError | None = None
        started = time.monotonic()
        with fuzzing.time_limit(60):
            try:
                act()
            except MPRUError as error:
                refused = error
        assert time.monotonic() - started < 30
        # Refused on purpose, if at all, and not because something gave way.
        assert refused is None or not isinstance(refused.__cause__, (RecursionError, MemoryError))


@pytest.mark.parametrize("classes", [structure.MOST_CLASSES + 1, 2**40, 2**62])
def test_more_classes_than_is_reasonable_are_refused_before_a_filter_is_made(tmp_path: Path, classes: int) -> None:
    z = [node("w", "VarHandleOp", dtype=FLOAT), node("r", "ReadVariableOp", "w", dtype=FLOAT)]
    for size in (8, classes):
        z[0].attr["shape"].shape.dim.add(size=size)
    nodes = [*z, node("z", "MatMul", "x", "r", T=FLOAT), node("p", "Softmax", "z", T=FLOAT)]
    z[1].attr["_output_shapes"].list.shape.add().CopyFrom(z[0].attr["shape"].shape)
    variables = tmp_path / "1" / "variables"
    variables.mkdir(parents=True)
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (variables / name).write_bytes(b"")
    (tmp_path / "1" / "saved_model.pb").write_bytes(model(nodes).SerializeToString())
    with pytest.raises((CorruptModelError, UnsupportedModelError), match=str(structure.MOST_CLASSES)):
        mpru_tf.forget(tmp_path, [1], load_check=False)


# ------------------------------------------------------------------------------------------------------ command line
def test_the_command_line_says_one_paragraph_and_no_traceback(models: ModelStore, tmp_path: Path) -> None:
    data = (models.pristine("keras3") / "saved_model.pb").read_bytes()
    bad = {"truncated": data[: len(data) // 2], "nothing": b"", "noise": bytes(range(256)) * 40}
    for name, maker in (("cycle", "identities of each other"), ("tangle", "scores called twice and added")):
        bad[name] = HOSTILE[maker]().SerializeToString()
    for name, content in bad.items():
        path = models.base("keras3", tmp_path / name) / "1" / "saved_model.pb"
        path.write_bytes(content)
    pipe = models.base("keras3", tmp_path / "pipe") / "1" / "saved_model.pb"
    pipe.unlink()
    os.mkfifo(pipe)
    running = {}
    for name in (*bad, "pipe"):
        base = tmp_path / name / "keras3"
        forget = ["forget", str(base), "--classes", "3", "--skip-load-check"]
        arguments = forget if name in ("noise", "tangle") else ["inspect", str(base)]
        command = [sys.executable, "-m", "mpru_tf.cli", *arguments]
        running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, process in running.items():
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in out + err, name
        if name != "cycle":  # read, but not filtered: inspect says why
            assert process.returncode == 1, (name, out, err)
            assert len(err.strip().split("\n\n")) == 1, (name, err)
        assert [child.name for child in (tmp_path / name / "keras3").iterdir()] == ["1"]
