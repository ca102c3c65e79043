"""Pruning: doors past the filter go, everything that a loader needs stays, and outputs can be dropped one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore

import mpru_tf
from mpru_tf import make_filter
from mpru_tf.errors import UnsupportedModelError
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.bundle import Bundle
from mpru_tf.saved_model.graph import Graph
from mpru_tf.saved_model.leaks import LeakGate, score_family
from mpru_tf.saved_model.prune import Pruned, drop_output, prune
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import splice, unused_prefixes

X = saved_models.inputs(rows=3)


def spliced(version: Path) -> tuple[Bundle, Graph, LeakGate]:
    """A model with the filter in it, not yet pruned."""
    bundle = bundles.read(version)
    (read,) = bundle.graphs()
    points = survey([read]).the_site().points
    family = score_family(read, points)
    spec = make_filter(saved_models.CLASSES, [1])
    done = [splice(read, point, spec, prefix) for point, prefix in zip(points, unused_prefixes(bundle), strict=False)]
    return bundle, read, LeakGate(read, done, family)


def references(read: Graph) -> set[str]:
    """Every function that anything in the MetaGraph mentions."""
    nodes = [*read.meta_graph.graph_def.node]
    nodes += [one for body in read.meta_graph.graph_def.library.function for one in body.node_def]
    mentioned = {name for one in nodes for name in read.function_references(one)}
    objects = read.meta_graph.object_graph_def
    for one in objects.nodes:
        mentioned |= set(one.function.concrete_functions)
        mentioned |= {one.bare_concrete_function.concrete_function_name} - {""}
    return mentioned | set(objects.concrete_functions)


@pytest.mark.parametrize("name", ["keras3", "keras2", "argmax_of_logits", "two_functions"])
def test_what_is_left_hangs_together(models: ModelStore, name: str) -> None:
    bundle, read, gate = spliced(models.pristine(name))
    before = len(read.meta_graph.object_graph_def.nodes), set(read.functions)
    prune(read, gate)
    (again,) = bundle.graphs()
    objects = again.meta_graph.object_graph_def
    # Objects are named by their position, in the checkpoint too.
    assert len(objects.nodes) == before[0]
    assert references(again) == set(again.functions)
    assert set(again.functions) <= before[1]
    for one in objects.nodes:
        assert all(child.node_id < len(objects.nodes) for child in one.children)
    clean = LeakGate(again, [], frozenset())
    clean._filtered = gate._filtered
    for function, details in objects.concrete_functions.items():
        assert clean.function_is_clean(function, len(details.bound_inputs))


def test_what_leaks_is_dropped_and_named(models: ModelStore) -> None:
    _, read, gate = spliced(models.pristine("argmax_of_logits"))
    raw = [name for name in read.functions if "_raw_" in name]
    pruned = prune(read, gate)
    assert pruned.endpoints == ("root.raw",)
    assert raw
    assert not [f.signature.name for f in read.meta_graph.graph_def.library.function if "_raw_" in f.signature.name]
    assert pruned.functions >= len(raw)


def test_nothing_is_dropped_from_a_model_whose_doors_are_all_filtered(models: ModelStore) -> None:
    for name in ("keras3", "two_functions", "hand_normalised"):
        bundle, read, gate = spliced(models.pristine(name))
        before = bundle.proto.SerializeToString(deterministic=True)
        assert prune(read, gate) == Pruned((), 0)
        assert bundle.proto.SerializeToString(deterministic=True) == before


def test_tensorflow_1_has_no_doors_but_its_signatures(models: ModelStore) -> None:
    bundle, read, gate = spliced(models.pristine("tf1_classify"))
    before = bundle.proto.SerializeToString(deterministic=True)
    assert prune(read, gate) == Pruned((), 0)
    assert bundle.proto.SerializeToString(deterministic=True) == before


def test_keras_2_is_left_nothing_to_rebuild_layers_from(models: ModelStore) -> None:
    _, read, gate = spliced(models.pristine("keras2"))
    objects = read.meta_graph.object_graph_def
    keras = [number for number, one in enumerate(objects.nodes) if one.user_object.identifier.startswith("_tf_keras_")]
    assert keras
    assert any(child.local_name == "keras_api" for one in objects.nodes for child in one.children)
    for number in keras:  # where TensorFlow 2.4 and earlier put what later versions put into keras_metadata.pb
        objects.nodes[number].user_object.metadata = '{"class_name": "Dense"}'
    pruned = prune(read, gate)
    assert any("layer" in endpoint for endpoint in pruned.endpoints)
    assert not [one for one in objects.nodes if "keras" in one.user_object.identifier or one.user_object.metadata]
    for number in keras:
        assert not [child for child in objects.nodes[number].children if child.local_name == "keras_api"]


def test_captured_variables_stay_as_they_were(models: ModelStore) -> None:
    for name in ("keras2", "argmax_of_logits"):
        _, read, gate = spliced(models.pristine(name))
        objects = read.meta_graph.object_graph_def

        def bound(objects: Any = objects) -> dict[str, list[int]]:
            return {key: list(function.bound_inputs) for key, function in objects.concrete_functions.items()}

        def variables(objects: Any = objects) -> dict[int, bytes]:
            kept = enumerate(objects.nodes)
            return {n: one.variable.SerializeToString() for n, one in kept if one.WhichOneof("kind") == "variable"}

        before, before_variables = bound(), variables()
        prune(read, gate)
        assert bound().items() <= before.items()
        assert variables() == before_variables


# ------------------------------------------------------------------------------------------- models with resources
def table_model(path: Path) -> None:
    """Labels by a hash table (which has create, initialize and destroy functions), and a raw endpoint beside."""
    module = saved_models._Module(1)
    keys, names = tf.range(saved_models.CLASSES, dtype=tf.int64), tf.constant(saved_models.LABELS)
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, names), "?")
    module.counts = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    module.counts.insert(tf.constant(saved_models.LABELS), keys)
    x = tf.TensorSpec([None, saved_models.FEATURES], tf.float32, name="x")
    module.raw = tf.function(module.scores, input_signature=[x])

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = module.scores(x)
        label = module.table.lookup(tf.argmax(z, -1))
        return {"label": label, "index": module.counts.lookup(label), "p": tf.nn.softmax(z)}

    module.answer = tf.function(answer, input_signature=[x])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.answer})


def test_tables_are_still_created_filled_and_restored(tmp_path: Path) -> None:
    table_model(tmp_path / "1")
    result = mpru_tf.forget(tmp_path, [saved_models.LABELS[0]], labels=saved_models.LABELS)
    assert result.dropped_endpoints == ("root.raw",)
    with LoadedModel(result.path) as model:
        answers = model.run("serving_default", {"x": X})
    expected = answers["p"].argmax(-1)
    assert [label.decode() for label in answers["label"]] == [saved_models.LABELS[index] for index in expected]
    np.testing.assert_array_equal(answers["index"], expected)
    loaded = tf.saved_model.load(str(result.path))
    for door in (loaded.answer, loaded.signatures["serving_default"]):
        again = door(x=tf.constant(X))
        np.testing.assert_array_equal(again["index"], expected)
        np.testing.assert_array_equal(again["p"][:, 0], 0.0)
    assert not hasattr(loaded, "raw")


def test_bodies_of_loops_and_branches_are_kept(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        turned = tf.switch_case(tf.shape(x)[0] % 2, [lambda: x, lambda: -x])
        scaled = tf.cond(tf.reduce_sum(x) > 0, lambda: 2.0 * turned, lambda: turned)
        summed = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + 1.0), (0, scaled))[1]
        return {"p": tf.nn.softmax(module.scores(summed))}

    x = tf.TensorSpec([None, saved_models.FEATURES], tf.float32, name="x")
    module.raw = tf.function(module.scores, input_signature=[x])
    saved_models._save(tmp_path / "1", module, {"serving_default": answer})
    result = mpru_tf.forget(tmp_path, [1])
    assert result.dropped_endpoints == ("root.raw",)
    (read,) = bundles.read(result.path).graphs()
    ops = {one.op for body in read.meta_graph.graph_def.library.function for one in body.node_def}
    assert {"Case", "StatelessCase"} & ops
    assert {"If", "StatelessIf"} & ops
    assert {"While", "StatelessWhile"} & ops
    with LoadedModel(result.path) as model:
        p = model.run("serving_default", {"x": X})["p"]
    again = tf.saved_model.load(str(result.path)).signatures["serving_default"](x=tf.constant(X))["p"]
    np.testing.assert_allclose(p, again, atol=1e-6)
    np.testing.assert_array_equal(p[:, 1], 0.0)


def test_custom_gradients_are_kept_with_what_they_need(tmp_path: Path) -> None:
    module = saved_models._Module(1)

    @tf.custom_gradient
    def clipped(z: tf.Tensor) -> Any:
        return tf.identity(z), lambda upstream: tf.clip_by_norm(upstream, 1.0)

    x = tf.TensorSpec([None, saved_models.FEATURES], tf.float32, name="x")
    module.answer = tf.function(lambda x: {"p": tf.nn.softmax(clipped(module.scores(x)))}, input_signature=[x])
    module.raw = tf.function(module.scores, input_signature=[x])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.answer}, options)
    result = mpru_tf.forget(tmp_path, [1])
    assert result.dropped_endpoints == ("root.raw",)
    (read,) = bundles.read(result.path).graphs()
    registered = read.meta_graph.graph_def.library.registered_gradients
    assert registered
    assert {gradient.gradient_func for gradient in registered} <= set(read.functions)
    loaded = tf.saved_model.load(str(result.path))
    with tf.GradientTape() as tape:
        tape.watch(inputs := tf.constant(X))
        p = loaded.answer(inputs)["p"]
    assert np.all(p[:, 1] == 0)
    assert np.all(np.isfinite(tape.gradient(p, inputs)))


# -------------------------------------------------------------------------------------------------- dropping outputs
def several(path: Path) -> None:
    """Five outputs in two signatures with a function each."""
    module = saved_models._Module(2)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = module.scores(x)
        return {"a": z[:, :1], "b": tf.nn.softmax(z), "c": tf.zeros([2]), "d": x, "e": tf.argmax(z, -1)}

    def other(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"b": tf.nn.softmax(module.scores(x)), "d": x}

    saved_models._save(path, module, {"serving_default": answer, "other": other})


@pytest.mark.parametrize("keys", [["a"], ["c"], ["e"], ["a", "c", "d"], ["d", "a"]])
def test_the_other_outputs_stay_what_they_were(tmp_path: Path, keys: list[str]) -> None:
    several(tmp_path / "1")
    drop = [f"serving_default:{key}" for key in keys]
    result = mpru_tf.forget(tmp_path, [1], method="renormalize", drop_outputs=drop)
    assert result.dropped_outputs == tuple(drop)
    with LoadedModel(tmp_path / "1") as model:
        before = model.run("serving_default", {"x": X})
    with LoadedModel(result.path) as model:
        after = model.run("serving_default", {"x": X})
        assert set(model.signatures["other"].outputs) == {"b", "d"}
    assert set(after) == set("abcde") - set(keys)
    np.testing.assert_array_equal(after["b"][:, 1], 0.0)
    for key in set("ad") - set(keys):
        np.testing.assert_array_equal(after[key], before[key])  # renormalize moves no retained logit
    if "e" in after:
        np.testing.assert_array_equal(after["e"], after["b"].argmax(-1))
    loaded = tf.saved_model.load(str(result.path)).signatures["serving_default"]
    again = loaded(x=tf.constant(X))
    assert set(again) == set(after)
    for key, value in after.items():
        np.testing.assert_allclose(again[key], value, atol=1e-6)
    assert set(loaded.structured_outputs) == set(after)


def test_an_output_of_tensorflow_1_is_dropped_from_its_signature_alone(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("tf1_classify")).graphs()
    nodes = len(read.meta_graph.graph_def.node)
    drop_output(read, "predict", "logits")
    assert set(read.meta_graph.signature_def["predict"].outputs) == {"probabilities"}
    assert len(read.meta_graph.graph_def.node) == nodes


def test_outputs_that_cannot_be_dropped(models: ModelStore, tmp_path: Path) -> None:
    (read,) = bundles.read(models.pristine("hand_normalised")).graphs()
    signatures = read.meta_graph.signature_def
    signatures["alias"].CopyFrom(signatures["serving_default"])
    with pytest.raises(UnsupportedModelError, match="another signature shows the same value"):
        drop_output(read, "serving_default", "class_ids")
    (read,) = bundles.read(models.pristine("keras3")).graphs()
    with pytest.raises(UnsupportedModelError, match="without any"):
        drop_output(read, "serving_default", "output_0")


def test_an_output_that_another_function_uses_cannot_be_dropped(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("hand_normalised")).graphs()
    (caller,) = (one for one in read.meta_graph.graph_def.node if "signature_wrapper" in one.attr["f"].func.name)
    user = read.meta_graph.graph_def.library.function.add()
    user.signature.name = "user"
    user.node_def.add().CopyFrom(caller)
    with pytest.raises(UnsupportedModelError, match="function user uses"):
        drop_output(Graph(read.meta_graph), "serving_default", "class_ids")
