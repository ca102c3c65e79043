"""Examples out of files, as inputs of the signatures that they fit."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from mpru_tf.errors import DataError
from mpru_tf.request_files import RequestFile


def signature(**inputs: Any) -> SignatureDef:
    """A signature with inputs of (dtype, shape); None for an unknown rank."""
    definition = SignatureDef(method_name="tensorflow/serving/predict")
    for key, (dtype, shape) in inputs.items():
        definition.inputs[key].dtype = dtype.as_datatype_enum
        definition.inputs[key].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return definition


ROWS = signature(a=(tf.float32, [None, 3]))
TWO = signature(a=(tf.float32, [None, 3]), b=(tf.int32, [None]))
WORDS = signature(w=(tf.string, [None]))
X = np.arange(12, dtype=np.float64).reshape(4, 3)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


@pytest.mark.parametrize("names", [{"a": X}, {"x": X, "y": np.zeros(4)}, {"whatever": X}])
def test_one_input_takes_its_own_array_or_x_or_the_only_one(tmp_path: Path, names: dict[str, Any]) -> None:
    found = RequestFile(saved(tmp_path, **names)).fit({"s": ROWS})
    assert found["s"]["a"].dtype == np.float32
    np.testing.assert_array_equal(found["s"]["a"], X)


def test_it_goes_to_every_signature_that_it_fits(tmp_path: Path) -> None:
    found = RequestFile(saved(tmp_path, a=X, b=np.arange(4))).fit({"rows": ROWS, "two": TWO, "words": WORDS})
    assert {name: sorted(inputs) for name, inputs in found.items()} == {"rows": ["a"], "two": ["a", "b"]}
    assert found["two"]["b"].dtype == np.int32


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    np.testing.assert_array_equal(RequestFile(tmp_path / "data.npy").fit({"s": ROWS})["s"]["a"], X)


def test_strings_become_bytes(tmp_path: Path) -> None:
    for words in (np.array(["é", "b"]), np.array([b"\xc3\xa9", b"b"])):
        found = RequestFile(saved(tmp_path, w=words)).fit({"s": WORDS})["s"]["w"]
        assert found.dtype == np.object_
        assert found.tolist() == [b"\xc3\xa9", b"b"]


@pytest.mark.parametrize(
    ("body", "definition", "expected"),
    [
        ({"instances": X.tolist()}, ROWS, {"a": X}),
        (X.tolist(), ROWS, {"a": X}),
        ({"inputs": {"a": X.tolist(), "b": [1, 2, 3, 4]}}, TWO, {"a": X, "b": [1, 2, 3, 4]}),
        ([{"a": [1, 2, 3], "b": 4}], TWO, {"a": [[1, 2, 3]], "b": [4]}),
        ([{"b64": base64.b64encode(b"\xff").decode()}], WORDS, {"w": [b"\xff"]}),
    ],
)
def test_json_as_rest_takes_it(tmp_path: Path, body: Any, definition: SignatureDef, expected: Any) -> None:
    (tmp_path / "data.json").write_text(json.dumps(body), encoding="utf-8")
    found = RequestFile(tmp_path / "data.json").fit({"s": definition})["s"]
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)


def test_json_may_name_the_signature(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"signature_name": "t", "instances": [[1, 2, 3]]}', encoding="utf-8")
    assert list(RequestFile(tmp_path / "data.json").fit({"s": ROWS, "t": ROWS})) == ["t"]
    with pytest.raises(DataError, match="no signature 't'"):
        RequestFile(tmp_path / "data.json").fit({"s": ROWS})


@pytest.mark.parametrize(
    ("arrays", "definition", "words"),
    [
        ({"x": X[:, :2]}, ROWS, r"shape \[4, 2\]"),
        ({"x": X.ravel()}, ROWS, r"shape \[12\]"),
        ({"x": X[:0]}, ROWS, "0 rows"),
        ({"x": np.array(["a"] * 12).reshape(4, 3)}, ROWS, "wanted is float32"),
        ({"x": np.array([1.5])}, signature(b=(tf.int32, [None])), "wanted is int32"),
        ({"x": np.array([2**40])}, signature(b=(tf.int32, [None])), "wanted is int32"),
        ({"x": np.array([1])}, WORDS, "wanted are strings"),
        ({"a": X, "b": np.arange(3)}, TWO, "3, 4 rows"),
        ({"a": X}, TWO, "there is no b among a"),
    ],
)
def test_what_fits_nothing_is_refused(
    tmp_path: Path, arrays: dict[str, Any], definition: SignatureDef, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        RequestFile(saved(tmp_path, **arrays)).fit({"s": definition})
    assert "fit no signature" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("data.npz", b"PK nothing", "cannot be read"),
        ("data.npy", b"", "cannot be read"),
        ("data.json", b"{", "JSON Parse error"),
        ("data.json", b"3", "Is not object"),
        ("none.npz", None, "No such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        RequestFile(tmp_path / name)


def test_a_request_without_inputs_says_so(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="Missing 'inputs' or 'instances' key"):
        RequestFile(tmp_path / "data.json").fit({"s": ROWS})
