"""Finding the class scores: in what shapes people leave them, and refusing what has none, by reading alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from graph_protos import graph, node, op_of, tensor_of, traced

from mpru_tf.errors import AmbiguousSiteError, UnsupportedModelError
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.candidates import LOGITS, PROBABILITIES
from mpru_tf.saved_model.graph import Graph, Place
from mpru_tf.saved_model.score_site import Choice, ScoreSite
from mpru_tf.saved_model.sites import Survey, survey

CLASSES = 4
RANDOM = np.random.default_rng(0)
W, V = (RANDOM.standard_normal((10, CLASSES)).astype(np.float32) for _ in range(2))
B = RANDOM.standard_normal(CLASSES).astype(np.float32)
GATE = RANDOM.standard_normal((10, 2)).astype(np.float32)
ONE = RANDOM.standard_normal((10, 1)).astype(np.float32)
FILTERS = RANDOM.standard_normal((1, 1, 10, CLASSES)).astype(np.float32)

Answer = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]


def logits(x: tf.Tensor) -> tf.Tensor:
    return x @ W + B


def normalised(z: tf.Tensor, divisor: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    e = tf.exp(z - tf.reduce_max(z, -1, keepdims=True))
    return e / divisor(e)


def shared(e: tf.Tensor) -> tf.Tensor:
    return e / tf.reduce_sum(e, -1, keepdims=True)


def experts(x: tf.Tensor) -> tf.Tensor:
    each = tf.stack([tf.nn.softmax(x @ W), tf.nn.softmax(x @ V)], 1)
    return tf.einsum("be,bec->bc", tf.nn.softmax(x @ GATE), each)


def slim(x: tf.Tensor) -> dict[str, tf.Tensor]:
    z = logits(x)
    return {"z": z, "p": tf.reshape(tf.nn.softmax(tf.reshape(z, [-1, CLASSES])), tf.shape(z))}


def looped(x: tf.Tensor) -> tf.Tensor:
    return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y)), (0, x))[1]


def either(x: tf.Tensor, one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    return tf.cond(tf.reduce_sum(x) > 0, one, other)


def branches(x: tf.Tensor) -> dict[str, tf.Tensor]:
    def answer(w: np.ndarray[Any, Any]) -> tuple[tf.Tensor, ...]:
        z = x @ w
        return z, tf.nn.softmax(z), tf.argmax(z, -1)

    return dict(zip("zpi", either(x, lambda: answer(W), lambda: answer(V)), strict=True))


def averaged(x: tf.Tensor) -> tf.Tensor:
    start = (0, tf.zeros([tf.shape(x)[0], CLASSES]))
    turn = lambda i, p: (i + 1, p + tf.nn.softmax(logits(x) * tf.cast(i + 1, tf.float32)))  # noqa: E731
    return tf.while_loop(lambda i, p: i < 4, turn, start)[1] / 4.0


def refined(x: tf.Tensor) -> tf.Tensor:
    start = (0, tf.nn.softmax(logits(x)))
    return tf.while_loop(lambda i, p: i < 4, lambda i, p: (i + 1, tf.nn.softmax(p + logits(x))), start)[1]


def row_by_row(x: tf.Tensor) -> dict[str, tf.Tensor]:
    def answer(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        z = tf.linalg.matvec(W, row, transpose_a=True)
        return tf.nn.softmax(z), tf.argmax(z)

    p, i = tf.map_fn(answer, x, fn_output_signature=(tf.float32, tf.int64))
    return {"p": p, "i": i}


ACCEPTED: dict[str, tuple[Answer, str, str | tuple[str, ...], dict[str, str]]] = {
    "softmax": (lambda x: {"p": tf.nn.softmax(logits(x))}, LOGITS, "AddV2", {"p": "probabilities"}),
    "constant_beside": (
        lambda x: {"p": tf.nn.softmax(logits(x)), "version": tf.constant(3)},
        *(LOGITS, "AddV2", {"p": "probabilities"}),
    ),
    "log_softmax": (lambda x: {"p": tf.nn.log_softmax(logits(x))}, LOGITS, "AddV2", {"p": "log_probabilities"}),
    "no_softmax": (lambda x: {"z": logits(x)}, LOGITS, "AddV2", {"z": "logits"}),
    "no_bias": (lambda x: {"z": x @ W}, LOGITS, "MatMul", {"z": "logits"}),
    "ids_only": (lambda x: {"ids": tf.argmax(logits(x), -1)}, LOGITS, "AddV2", {"ids": "derived"}),
    "ranked": (
        lambda x: dict(zip(("scores", "ids"), tf.math.top_k(tf.nn.softmax(logits(x)), 2), strict=True)),
        *(LOGITS, "AddV2", {"scores": "derived", "ids": "derived"}),
    ),
    "names": (
        lambda x: {"name": tf.gather(["a", "b", "c", "d"], tf.argmax(tf.nn.softmax(logits(x)), -1))},
        *(LOGITS, "AddV2", {"name": "derived"}),
    ),
    "one_output_per_class": (
        lambda x: {f"p{c}": p for c, p in enumerate(tf.unstack(tf.nn.softmax(logits(x)), axis=-1))},
        *(LOGITS, "AddV2", {f"p{c}": "derived" for c in range(CLASSES)}),
    ),
    "percent": (lambda x: {"pc": tf.round(100.0 * tf.nn.softmax(logits(x)))}, LOGITS, "AddV2", {"pc": "derived"}),
    "temperature": (lambda x: {"p": tf.nn.softmax(logits(x) / 2.0)}, LOGITS, "RealDiv", {"p": "probabilities"}),
    "tf_slim": (slim, LOGITS, "AddV2", {"z": "logits", "p": "probabilities"}),
    "wide_and_deep": (lambda x: {"z": x @ W + tf.nn.relu(x) @ V}, LOGITS, "AddV2", {"z": "logits"}),
    "pooled": (
        lambda x: {"z": tf.reduce_mean(tf.nn.conv2d(x[:, None, None, :], FILTERS, 1, "SAME"), [1, 2])},
        *(LOGITS, "Mean", {"z": "logits"}),
    ),
    "pooled_softmax": (
        lambda x: {"p": tf.nn.softmax(tf.reduce_mean(tf.nn.conv2d(x[:, None, None, :], FILTERS, 1, "SAME"), [1, 2]))},
        *(LOGITS, "Mean", {"p": "probabilities"}),
    ),
    "in_a_branch": (
        lambda x: {"p": tf.nn.softmax(tf.cond(tf.reduce_sum(x) > 0, lambda: logits(x), lambda: logits(-x)))},
        *(LOGITS, "StatelessIf", {"p": "probabilities"}),
    ),
    "after_a_loop": (lambda x: {"p": tf.nn.softmax(logits(looped(x)))}, LOGITS, "AddV2", {"p": "probabilities"}),
    "half": (
        lambda x: {"p": tf.nn.softmax(tf.cast(tf.cast(x, tf.float16) @ W.astype(np.float16), tf.float32))},
        *(LOGITS, "Cast", {"p": "probabilities"}),
    ),
    "double": (
        lambda x: {"p": tf.nn.softmax(tf.cast(x, tf.float64) @ W.astype(np.float64))},
        *(LOGITS, "MatMul", {"p": "probabilities"}),
    ),
    "divided_by_sum": (
        lambda x: {"p": normalised(logits(x), lambda e: tf.reduce_sum(e, -1, keepdims=True)), "z": logits(x)},
        *(LOGITS, ("AddV2", "AddV2"), {"p": "probabilities", "z": "logits"}),
    ),
    "divided_by_clipped_sum": (
        lambda x: {"p": normalised(logits(x), lambda e: tf.maximum(tf.reduce_sum(e, -1, keepdims=True), 1e-9))},
        *(PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    ),
    "divided_by_broadcast_sum": (
        lambda x: {
            "p": normalised(logits(x), lambda e: tf.broadcast_to(tf.reduce_sum(e, -1, keepdims=True), tf.shape(e)))
        },
        *(LOGITS, "AddV2", {"p": "probabilities"}),
    ),
    "other_positive_numbers_divided_by_sum": (
        lambda x: {"p": shared(tf.nn.softplus(logits(x)))},
        *(PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    ),
    "divided_by_l1_norm": (
        lambda x: {"p": tf.linalg.normalize(tf.nn.softplus(logits(x)), 1, axis=-1)[0]},
        *(PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    ),
    "renumbered": (
        lambda x: {"p": tf.gather(tf.nn.softmax(logits(x)), [1, 0, 3, 2], axis=-1)},
        *(PROBABILITIES, "GatherV2", {"p": "probabilities"}),
    ),
    "reversed": (
        lambda x: {"p": tf.reverse(tf.nn.softmax(logits(x)), [-1])},
        *(PROBABILITIES, "ReverseV2", {"p": "probabilities"}),
    ),
    "clipped": (
        lambda x: {"p": tf.clip_by_value(tf.nn.softmax(logits(x)), 1e-7, 1.0)},
        *(PROBABILITIES, "Maximum", {"p": "probabilities"}),
    ),
    "with_a_floor": (
        lambda x: {"p": 0.9 * tf.nn.softmax(logits(x)) + 0.025},
        *(PROBABILITIES, "AddV2", {"p": "probabilities"}),
    ),
    "clipped_beside_the_softmax": (
        lambda x: {"p": (p := tf.nn.softmax(logits(x))), "log": tf.math.log(tf.maximum(p, 1e-7))},
        *(LOGITS, "AddV2", {"p": "probabilities", "log": "derived"}),
    ),
    "in_words": (
        lambda x: {"s": tf.strings.reduce_join(tf.strings.as_string(tf.nn.softmax(logits(x))), -1, separator=",")},
        *(LOGITS, "AddV2", {"s": "derived"}),
    ),
    "those_above_a_threshold": (
        lambda x: {"where": tf.where(tf.nn.softmax(logits(x)) > 0.3)},
        *(LOGITS, "AddV2", {"where": "derived"}),
    ),
    "vote": (
        lambda x: {"p": (tf.nn.softmax(x @ W) + tf.nn.softmax(x @ V)) / 2.0},
        *(PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    ),
    "vote_beside_a_member": (
        lambda x: {
            "p": ((one := tf.nn.softmax(x @ W)) + tf.nn.softmax(x @ V)) / 2.0,
            "sure": tf.reduce_max(one, -1) > 0.7,
        },
        *(PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    ),
    "early_exit": (
        lambda x: {
            "p": tf.where(
                tf.reduce_max(one := tf.nn.softmax(x @ W), -1, keepdims=True) > 0.7, one, tf.nn.softmax(x @ V)
            ),
            "exit": tf.reduce_max(one, -1) > 0.7,
        },
        *(PROBABILITIES, "SelectV2", {"p": "probabilities"}),
    ),
    "experts": (lambda x: {"p": experts(x)}, PROBABILITIES, "Einsum", {"p": "probabilities"}),
    "softmax_in_each_branch": (
        branches,
        *(LOGITS, ("MatMul", "MatMul"), {"z": "logits", "p": "probabilities", "i": "derived"}),
    ),
    "softmax_in_each_case": (
        lambda x: {
            "p": tf.switch_case(
                tf.cast(tf.reduce_sum(x) > 0, tf.int32), [lambda: tf.nn.softmax(x @ W), lambda: tf.nn.softmax(x @ V)]
            )
        },
        *(LOGITS, ("MatMul", "MatMul"), {"p": "probabilities"}),
    ),
    "a_constant_in_one_branch": (
        lambda x: {"p": either(x, lambda: tf.nn.softmax(logits(x)), lambda: tf.constant([[0.25] * CLASSES]))},
        *(PROBABILITIES, "StatelessIf", {"p": "probabilities"}),
    ),
    "logits_in_each_branch": (
        lambda x: {"z": either(x, lambda: x @ W, lambda: x @ V)},
        *(LOGITS, "StatelessIf", {"z": "logits"}),
    ),
    "averaged_over_turns": (lambda x: {"p": averaged(x)}, PROBABILITIES, "RealDiv", {"p": "probabilities"}),
    "each_turn_from_the_last": (lambda x: {"p": refined(x)}, PROBABILITIES, "StatelessWhile", {"p": "probabilities"}),
    "row_by_row": (row_by_row, LOGITS, "Squeeze", {"p": "probabilities", "i": "derived"}),
    "one_position": (
        lambda x: {"p": tf.nn.softmax((x @ W)[:, None, :])},
        *(LOGITS, "StridedSlice", {"p": "probabilities"}),
    ),
    "of_one_example": (
        lambda x: {"p": tf.nn.softmax(tf.reshape(x[:1] @ W, [CLASSES]))},
        *(LOGITS, "Reshape", {"p": "probabilities"}),
    ),
    "logits_of_one_example": (
        lambda x: {"z": tf.reshape(x[:1] @ W, [CLASSES])},
        *(LOGITS, "MatMul", {"z": "logits"}),
    ),
    "once_more_without_softmax": (
        lambda x: {"p": tf.nn.softmax(logits(x)), "i": tf.argmax(logits(x), -1)},
        *(LOGITS, ("AddV2", "AddV2"), {"p": "probabilities", "i": "derived"}),
    ),
    "two_classes": (lambda x: {"p": tf.nn.softmax(x @ GATE)}, LOGITS, "MatMul", {"p": "probabilities"}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_class_scores_are_found(case: str) -> None:
    f, kind, op, outputs = ACCEPTED[case]
    read = traced(f)
    site = survey([read]).the_site()
    assert site.kind == kind
    assert site.classes == (2 if case == "two_classes" else CLASSES)
    assert [op_of(read, Place(point.tensor)) for point in site.points] == ([op] if isinstance(op, str) else [*op])
    assert site.output_kinds == {f"serving_default:{key}": holds for key, holds in outputs.items()}
    assert site.outputs == tuple(sorted(site.output_kinds))
    assert site.is_half == any(point.dtype == tf.float16.as_datatype_enum for point in site.points)
    assert json.loads(json.dumps(site.to_dict()))["outputs"] == list(site.outputs)


def test_outputs_that_show_other_numbers_are_not_counted() -> None:
    """An output beside the Softmax that is no function of the site is the leak gate's to judge."""
    read = traced(lambda x: {"p": tf.nn.softmax(logits(x)), "other": x @ V[:, :2]})
    assert survey([read]).the_site().outputs == ("serving_default:p",)


def test_half_scores_that_are_shown_stay_half() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = tf.cast(x, tf.float16) @ W.astype(np.float16)
        return {"z": z, "p": tf.nn.softmax(tf.cast(z, tf.float32))}

    read = traced(f)
    site = survey([read]).the_site()
    assert site.is_half
    assert op_of(read, Place(site.points[0].tensor)) == "MatMul"


REFUSED: dict[str, tuple[Answer, str]] = {
    "regression": (lambda x: {"y": x @ ONE}, "one number per example"),
    "flat_regression": (lambda x: {"y": tf.squeeze(x @ ONE, -1)}, "one number per example"),
    "sigmoid": (lambda x: {"p": tf.sigmoid(x @ ONE)}, "one of two classes"),
    "sigmoid_and_its_complement": (
        lambda x: {"logistic": tf.sigmoid(x @ ONE), "p": tf.nn.softmax(tf.concat([0.0 * (x @ ONE), x @ ONE], -1))},
        "one of two classes",
    ),
    "multi_label": (lambda x: {"p": tf.sigmoid(logits(x))}, "multi-label"),
    "per_position": (lambda x: {"p": tf.nn.softmax(x[:, :, None] @ W[None, :1])}, "every position"),
    "per_position_logits": (lambda x: {"z": x[:, :, None] @ W[None, :1]}, "every position"),
    "a_row_per_turn": (
        lambda x: {"p": tf.transpose(tf.map_fn(lambda part: tf.nn.softmax(part @ W), tf.stack([x, x])), [1, 0, 2])},
        "every position",
    ),
    "tags_and_an_embedding": (
        lambda x: {"tags": tf.sigmoid(tf.nn.relu(x @ W) @ V[:CLASSES]), "embedding": x @ W},
        "multi-label",
    ),
    "tags_and_features": (
        lambda x: {"tags": tf.sigmoid(tf.nn.relu(x @ W) @ V[:CLASSES]), "features": tf.math.log(tf.abs(x @ W) + 0.1)},
        "multi-label",
    ),
    "features": (lambda x: {"features": tf.math.log(x @ W + 0.1)}, "No output"),
    "a_box_and_whether_there_is_one": (lambda x: {"box": x @ W, "there": tf.sigmoid(x @ ONE)}, "one of two classes"),
    "two_vectors_side_by_side": (
        lambda x: {"p": tf.concat([tf.nn.softmax(x @ W), tf.nn.softmax(x @ GATE)], -1)},
        "side by side",
    ),
    "a_score_for_each_candidate": (
        lambda x: {"z": tf.squeeze(tf.stack([x] * CLASSES, 1) @ ONE, -1)},
        "every position",
    ),
    "one_of_two_probabilities": (lambda x: {"p": tf.nn.softmax(x @ GATE)[:, 1]}, "one of two classes"),
    "a_sigmoid_beside_its_complement": (
        lambda x: {"p": tf.concat([1.0 - tf.sigmoid(x @ ONE), tf.sigmoid(x @ ONE)], -1)},
        "one of two classes",
    ),
    "clipped_sigmoids": (lambda x: {"p": tf.clip_by_value(tf.sigmoid(logits(x)), 1e-7, 1.0)}, "multi-label"),
    "divided_by_the_sum_over_the_batch": (
        lambda x: {"p": normalised(logits(x), lambda e: tf.reduce_sum(e, 0, keepdims=True))},
        "No output",
    ),
    "one_sigmoid_per_class": (
        lambda x: {"p": tf.concat([tf.sigmoid(x @ ONE), tf.sigmoid(-(x @ ONE)), tf.sigmoid(2 * (x @ ONE))], -1)},
        "--multi-label",
    ),
    "detections": (
        lambda x: {
            "scores": tf.sigmoid(x[:, :, None] @ W[None, :1]),
            "num_detections": tf.cast(tf.math.count_nonzero(x @ W > 0, -1), tf.float32),
        },
        "every position",
    ),
    "embedding": (lambda x: {"h": tf.nn.relu(logits(x))}, "No output of this model"),
    "nothing_from_the_request": (lambda x: {"c": tf.zeros([3]), "rows": tf.shape(x)}, "no signature with an output"),
    "scores_from_the_client": (lambda x: {"p": tf.nn.softmax(x)}, "sent by the client"),
    "sum_over_the_batch": (lambda x: {"p": tf.exp(x @ ONE) / tf.reduce_sum(tf.exp(x @ ONE))}, "No output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_without_class_scores_are_refused_with_the_reason(case: str) -> None:
    f, reason = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        survey([traced(f)]).the_site()


def open_width(x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"p": tf.nn.softmax(tf.reshape(x @ W, [-1, tf.strings.length(tf.as_string(tf.shape(x)[0]))]))}


def test_an_open_number_of_classes_is_for_the_owner_to_tell() -> None:
    read = traced(open_width)
    with pytest.raises(UnsupportedModelError, match="number of classes cannot be read.*--num-classes"):
        survey([read]).the_site()
    (point,) = survey([read], Choice(classes=7)).the_site().points
    assert (point.classes, point.shape) == (7, (None, None))  # compared with 7 when it runs


def test_a_number_of_classes_that_the_graph_contradicts_is_refused() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(logits(x))})
    assert survey([read], Choice(classes=CLASSES)).the_site().classes == CLASSES
    with pytest.raises(UnsupportedModelError, match=f"another number of classes: {CLASSES}"):
        survey([read], Choice(classes=7)).the_site()


def test_a_bias_tells_the_number_of_classes_where_not_even_the_rank_is_known() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(tf.py_function(lambda y: y @ W, [x], tf.float32) + B)})
    (point,) = survey([read]).the_site().points
    assert (point.classes, point.shape) == (CLASSES, None)


# ------------------------------------------------------------------------------------------------------- multi-label
MULTI = Choice(multi_label=True)


def test_a_sigmoid_per_class_is_a_site_when_the_owner_says_so() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = logits(x)
        return {"p": tf.sigmoid(z), "z": z, "any": tf.sigmoid(z) > 0.5}

    read = traced(f)
    with pytest.raises(UnsupportedModelError, match="--multi-label"):
        survey([read]).the_site()
    site = survey([read], MULTI).the_site()
    assert (site.kind, site.multi_label, site.classes) == (LOGITS, True, CLASSES)
    assert site.output_kinds == {
        f"serving_default:{key}": kind for key, kind in (("p", "probabilities"), ("z", "logits"), ("any", "derived"))
    }


def test_averaged_sigmoids_are_a_site_of_probabilities() -> None:
    site = survey([traced(lambda x: {"p": (tf.sigmoid(x @ W) + tf.sigmoid(x @ V)) / 2.0})], MULTI).the_site()
    assert (site.kind, site.output_kinds) == (PROBABILITIES, {"serving_default:p": "probabilities"})


def test_the_logits_of_a_multi_label_model() -> None:
    site = survey([traced(lambda x: {"z": logits(x)})], MULTI).the_site()
    assert (site.kind, site.multi_label) == (LOGITS, True)


def test_two_labels_are_enough_for_a_multi_label_model() -> None:
    assert survey([traced(lambda x: {"p": tf.sigmoid(x @ GATE)})], MULTI).the_site().classes == 2


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: {"p": tf.nn.softmax(logits(x))}, "leave --multi-label out"),
        (lambda x: {"p": tf.sigmoid(x @ ONE)}, "one of two classes"),
        (lambda x: {"p": tf.sigmoid(x[:, :, None] @ W[None, :1])}, "every position"),
    ],
)
def test_what_is_no_multi_label_model(f: Answer, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        survey([traced(f)], MULTI).the_site()


# --------------------------------------------------------------------------------- what the owner says about a tensor
def by_hand(x: tf.Tensor) -> dict[str, tf.Tensor]:
    """Probabilities by an op that nobody looks into, and something else beside them."""
    p = tf.py_function(lambda y: tf.nn.softmax(y @ W), [x], tf.float32)
    return {"p": tf.ensure_shape(p, [None, CLASSES]), "h": tf.nn.relu(x)}


def test_the_owner_may_say_what_an_output_holds() -> None:
    read = traced(by_hand)
    with pytest.raises(UnsupportedModelError, match="--output SIG:KEY --scores"):
        survey([read]).the_site()
    site = survey([read], Choice(("serving_default:p",), scores=PROBABILITIES, classes=CLASSES)).the_site()
    assert (site.kind, site.outputs) == (PROBABILITIES, ("serving_default:p",))
    assert op_of(read, Place(site.points[0].tensor)) == "EagerPyFunc"
    assert survey([read], Choice(("serving_default:p",), scores=LOGITS, classes=CLASSES)).the_site().kind == LOGITS


def test_a_linear_layer_may_hold_probabilities() -> None:
    read = traced(lambda x: {"p": x @ W})
    assert survey([read], Choice(scores=PROBABILITIES)).the_site().kind == PROBABILITIES
    assert (
        survey([traced(lambda x: {"p": tf.nn.softmax(x @ W)})], Choice(scores=PROBABILITIES)).the_site().kind == LOGITS
    )


def test_a_named_output_means_the_scores_that_it_shows() -> None:
    """Not another Softmax on the way to them: attention, a gate, a coarser head."""

    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        attention = tf.nn.softmax(x @ GATE)
        return {"p": tf.nn.softmax((x @ W) * attention[:, :1] + (x @ V) * attention[:, 1:]), "attention": attention}

    read = traced(f)
    assert isinstance(survey([read]).refusal, AmbiguousSiteError)
    site = survey([read], Choice(("serving_default:p",))).the_site()
    assert (site.classes, site.output_kinds) == (CLASSES, {"serving_default:p": "probabilities"})
    coarse = survey([read], Choice(("serving_default:attention",))).the_site()
    assert coarse.output_kinds == {"serving_default:attention": "probabilities", "serving_default:p": "derived"}


def test_the_same_layer_is_found_again_whatever_is_made_of_it() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "p": tf.nn.softmax(logits(x)),
            "s": tf.sigmoid(logits(x)),
            "energy": tf.reduce_logsumexp(logits(x), -1),
            "t": tf.tanh(logits(x)),
        }

    read = traced(f)
    site = survey([read]).the_site()
    assert len(site.points) == 4
    assert site.outputs == tuple(f"serving_default:{key}" for key in ("energy", "p", "s", "t"))


def test_the_ending_of_a_named_output_decides() -> None:
    """Not that of another output, from which it happens to be computed."""
    read = traced(lambda x: {"tags": tf.sigmoid(tf.nn.relu(x @ W) @ V[:CLASSES]), "embedding": x @ W})
    with pytest.raises(UnsupportedModelError, match="--multi-label"):
        survey([read], Choice(("serving_default:tags",))).the_site()
    assert op_of(
        read, Place(survey([read], Choice(("serving_default:tags",), multi_label=True)).the_site().points[0].tensor)
    )
    assert survey([read], Choice(("serving_default:embedding",))).the_site().kind == LOGITS


def test_a_tensor_may_be_named() -> None:
    read = traced(lambda x: {"animal": tf.nn.softmax(x @ W), "colour": tf.nn.softmax(x @ V)})
    for site in survey([read]).sites:
        name = str(site.points[0].tensor)
        assert survey([read], Choice(sites=(name,))).the_site() == site
        without_port = name.rpartition(":")[0]
        assert survey([read], Choice(sites=(without_port,))).the_site() == site
    both = survey([read], Choice(sites=tuple(str(site.points[0].tensor) for site in survey([read]).sites))).the_site()
    assert both.outputs == ("serving_default:animal", "serving_default:colour")


def test_naming_what_a_softmax_answers_means_what_goes_into_it() -> None:
    read = traced(by_hand_softmax)
    tensor = tensor_of(read, "Softmax")
    site = survey([read], Choice(sites=(str(tensor),))).the_site()
    assert (site.kind, op_of(read, Place(site.points[0].tensor))) == (LOGITS, "AddV2")


def by_hand_softmax(x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"p": tf.cumsum(tf.nn.softmax(logits(x)), axis=-1)}


def test_a_named_tensor_must_tell_or_be_told_what_it_holds() -> None:
    read = traced(lambda x: {"p": tf.cumsum(tf.nn.relu(logits(x)), axis=-1)})
    name = str(tensor_of(read, "Relu"))
    with pytest.raises(AmbiguousSiteError, match="--scores"):
        survey([read], Choice(sites=(name,))).the_site()
    site = survey([read], Choice(sites=(name,), scores=PROBABILITIES)).the_site()
    assert (site.kind, site.output_kinds) == (PROBABILITIES, {"serving_default:p": "derived"})
    assert survey([read], Choice(sites=(str(tensor_of(read, "AddV2")),))).the_site().kind == LOGITS


@pytest.mark.parametrize("name", ["nothing", "nothing/at:0", "p:p", "", "p:-1"])
def test_a_name_that_is_no_tensor_is_told_with_what_there_is(name: str) -> None:
    with pytest.raises(AmbiguousSiteError, match="no such tensor"):
        survey([traced(lambda x: {"p": tf.nn.softmax(logits(x))})], Choice(sites=(name,))).the_site()


def test_every_way_back_is_explained() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        z = logits(x)
        return {"p": tf.nn.softmax(z), "i": tf.argmax(z, -1), "h": tf.nn.relu(x), "s": tf.sigmoid(x @ V), "y": x @ ONE}

    seen = {entry.outputs: entry for entry in survey([traced(f)]).seen}
    assert set(seen) == {(f"serving_default:{k}",) for k in "hsyi"} | {("serving_default:p",)} or len(seen) == 4
    verdicts = {output.removeprefix("serving_default:"): e.verdict for o, e in seen.items() for output in o}
    assert verdicts["p"].startswith("It is the input of the Softmax")
    assert "--multi-label" in verdicts["s"]
    assert "one number" in verdicts["y"]
    assert "no Softmax" in verdicts["h"]
    assert json.loads(json.dumps([entry.to_dict() for entry in seen.values()]))


def test_models_without_signatures_are_refused() -> None:
    assert isinstance(survey([graph([node("x", "Placeholder")])]).refusal, UnsupportedModelError)
    assert survey([]).refusal is not None


# ---------------------------------------------------------------------------------------------- several class vectors
def of(result: Survey) -> list[tuple[str, ...]]:
    return sorted(site.outputs for site in result.sites)


def test_two_heads_of_one_signature_are_two_sites_that_only_the_owner_can_tell_apart() -> None:
    read = traced(lambda x: {"animal": tf.nn.softmax(x @ W), "colour": tf.nn.softmax(x @ V)})
    found = survey([read])
    assert of(found) == [("serving_default:animal",), ("serving_default:colour",)]
    with pytest.raises(AmbiguousSiteError, match="--output"):
        found.the_site()
    assert survey([read], Choice(("serving_default:colour",))).the_site().outputs == ("serving_default:colour",)
    with pytest.raises(AmbiguousSiteError, match="serving_default:animal"):
        survey([read], Choice(("serving_default:shape",))).the_site()


def test_copies_of_one_head_in_several_signatures_are_one_site() -> None:
    read = traced(lambda x: {"p": tf.nn.softmax(logits(x))}, other=lambda x: {"q": tf.nn.softmax(logits(x) / 2.0)})
    site = survey([read]).the_site()
    assert len(site.points) == 2
    assert site.outputs == ("other:q", "serving_default:p")


def test_two_tasks_in_two_signatures_are_two_sites_though_equally_wide() -> None:
    """Class 3 of the animals is not class 3 of the colours: taken for copies, one would lose the wrong class."""
    read = traced(lambda x: {"animal": tf.nn.softmax(x @ W)}, colours=lambda x: {"colour": tf.nn.softmax(x @ V)})
    assert of(survey([read])) == [("colours:colour",), ("serving_default:animal",)]
    assert isinstance(survey([read]).refusal, AmbiguousSiteError)


def test_copies_are_known_by_their_variables_too(models: ModelStore, tmp_path: Path) -> None:
    (site,) = survey(bundles.read(models.pristine("two_functions")).graphs()).sites
    assert len(site.points) == 2
    one, two = saved_models._Module(1), saved_models._Module(2)
    one.other = two
    functions: dict[str, Callable[[tf.Tensor], Any]] = {
        "animal": lambda x: {"p": tf.nn.softmax(one.scores(x))},
        "colour": lambda x: {"q": tf.nn.softmax(two.scores(tf.nn.relu(x)))},
    }
    saved_models._save(tmp_path, one, functions)
    assert of(survey(bundles.read(tmp_path).graphs())) == [("animal:p",), ("colour:q",)]


def test_the_order_of_signatures_in_the_file_decides_nothing() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"p": tf.nn.softmax(logits(x))}

    names = list("klmnopqr")
    read = traced(f, **dict.fromkeys(names, f))
    expected = survey([read]).the_site()
    for _ in range(5):
        shuffled = type(read.meta_graph)()
        shuffled.CopyFrom(read.meta_graph)
        shuffled.signature_def.clear()
        for name in RANDOM.permutation(["serving_default", *names]).tolist():
            shuffled.signature_def[name].CopyFrom(read.meta_graph.signature_def[name])
        assert survey([Graph(shuffled)]).the_site() == expected


def test_copies_in_several_meta_graphs_are_one_site() -> None:
    first, second = (traced(lambda x: {"p": tf.nn.softmax(logits(x))}) for _ in range(2))
    second = Graph(second.meta_graph, 1)
    site = survey([first, second]).the_site()
    assert [point.meta_graph for point in site.points] == [0, 1]
    assert site.outputs == ("serving_default:p",)


def test_only_the_two_lifecycle_signatures_are_overlooked() -> None:
    """A server answers a signature of any other name, however it begins."""
    read = traced(lambda x: {"p": tf.nn.softmax(logits(x))}, __saved_model_scores=lambda x: {"z": logits(x)})
    assert set(survey([read]).the_site().outputs) == {"serving_default:p", "__saved_model_scores:z"}
    plain = traced(lambda x: {"c": tf.zeros([3])}, __saved_model_scores=lambda x: {"p": tf.nn.softmax(logits(x))})
    assert survey([plain]).the_site().outputs == ("__saved_model_scores:p",)


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_every_kind_of_export(models: ModelStore, name: str) -> None:
    graphs = bundles.read(models.pristine(name)).graphs()
    site: ScoreSite = survey(graphs).the_site()
    assert site.classes == saved_models.CLASSES
    shown = {
        f"{key}:{output}" for read in graphs for key, s in read.meta_graph.signature_def.items() for output in s.outputs
    }
    assert set(site.outputs) <= shown
    assert site.kind == (PROBABILITIES if name in ("hand_normalised", "ensemble") else LOGITS)
