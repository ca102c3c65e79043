"""Made-up requests: of the declared dtypes and shapes, the same every time, the likeliest first."""

from __future__ import annotations

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

import mpru_tf
from mpru_tf.probes import ROWS, requests
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.session import LoadedModel


def signature(**inputs: tuple[tf.DType, list[int | None] | None]) -> SignatureDef:
    result = SignatureDef()
    for key, (dtype, shape) in inputs.items():
        result.inputs[key].dtype = dtype.as_datatype_enum
        result.inputs[key].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return result


def test_shapes_are_those_declared_with_open_axes_tried_out() -> None:
    made = list(requests(signature(x=(tf.float32, [None, 8]), y=(tf.int64, [3]), z=(tf.bool, []))))
    assert {key: value.shape for key, value in made[0].items()} == {"x": (ROWS, 8), "y": (3,), "z": ()}
    assert len(made) == 3  # three ways to draw numbers, one length
    open_axes = list(requests(signature(image=(tf.float32, [None, None, None, 3]))))
    sides = [value["image"].shape for value in open_axes]
    assert len(set(sides)) > 3
    assert all(shape[0] == ROWS and shape[1] == shape[2] and shape[3] == 3 for shape in sides)
    assert next(requests(signature(x=(tf.float32, None))))["x"].shape == (ROWS,)


@pytest.mark.parametrize(
    "dtype",
    [
        tf.float16,
        tf.bfloat16,
        tf.float32,
        tf.float64,
        tf.int8,
        tf.uint8,
        tf.int32,
        tf.int64,
        tf.uint64,
        tf.bool,
        tf.complex64,
    ],
)
def test_dtypes_are_those_declared(dtype: tf.DType) -> None:
    for made in requests(signature(x=(dtype, [None, 4]))):
        assert made["x"].dtype == dtype.as_numpy_dtype
        assert np.all(np.isfinite(made["x"].astype(np.complex128)))


def test_strings_are_empty() -> None:
    made = next(requests(signature(s=(tf.string, [None]), x=(tf.float32, [None]))))
    assert made["s"].tolist() == [b""] * ROWS
    assert made["x"].dtype == np.float32


def test_floats_are_normal_at_first_and_then_ids() -> None:
    first, *rest = (made["x"] for made in requests(signature(x=(tf.float32, [None, 1000]))))
    assert abs(first.mean()) < 0.1
    assert 0.9 < first.std() < 1.1
    assert set(np.unique(rest[0])) == {0.0, 1.0}
    assert not rest[-1].any()
    for made in requests(signature(ids=(tf.int32, [None, 1000]))):
        assert set(np.unique(made["ids"])) <= {0, 1}  # in any vocabulary


def test_requests_are_the_same_every_time_and_differ_by_seed() -> None:
    asked = signature(b=(tf.float32, [None, 5]), a=(tf.float32, [None, 5]))
    one, same, other = (next(requests(asked, seed)) for seed in (0, 0, 1))
    for key in ("a", "b"):
        np.testing.assert_array_equal(one[key], same[key])
        assert np.any(one[key] != other[key])
    assert np.any(one["a"] != one["b"])


@pytest.mark.parametrize("name", saved_models.FILTERED)
def test_models_answer_the_first_request(models: ModelStore, name: str) -> None:
    path = models.pristine(name)
    signatures = bundles.read(path).meta_graphs[0].signature_def
    with LoadedModel(path) as model:
        for key in mpru_tf.inspect(path).signatures:
            assert model.run(key, next(requests(signatures[key])))
