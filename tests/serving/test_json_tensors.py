"""JSON forms of the REST API; the examples are those of its public documentation."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.serving.json_tensors import Format, _Dense, _read_slowly, parse_request, read_tensors, write_tensors
from mpru_tf.serving.status import RequestError


def read(body: str | bytes, **dtypes: Any) -> dict[str, np.ndarray]:
    raw = body.encode() if isinstance(body, str) else body
    return read_tensors(parse_request(raw), {key: dtype.as_datatype_enum for key, dtype in dtypes.items()}, raw)[0]


def refusal(body: str | bytes, **dtypes: Any) -> str:
    with pytest.raises(RequestError) as refused:
        read(body, **(dtypes or {"x": tf.float32}))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return refused.value.message


# ----------------------------------------------------------------------------------------------------------- requests


def test_numbers_beyond_64_bits_are_decimals() -> None:
    assert read(f'{{"inputs": [{2**70}, -1e300]}}', x=tf.float64)["x"].tolist() == [2.0**70, -1e300]
    assert read(f'{{"instances": [{2**70}, 1]}}', x=tf.float32)["x"].tolist() == [2.0**70, 1]
    assert "is not of expected type: int64" in refusal(f'{{"inputs": [{2**63}]}}', x=tf.int64)
    for digits in (400, 5000):
        assert "Number too big to be stored in double." in refusal(f'{{"inputs": [{"9" * digits}]}}', x=tf.float64)


def test_infinity_has_a_short_form() -> None:
    got = read('{"inputs": [-Inf, Infinity, Inf, -Infinity, 1]}', x=tf.float32)["x"]
    assert got.tolist() == [-np.inf, np.inf, np.inf, -np.inf, 1]
    assert read(r'{"inputs": ["Inf", "\"-Inf"], "k": Inf}', x=tf.string)["x"].tolist() == [b"Inf", b'"-Inf']
    assert refusal('{"inputs": [Info]}').startswith("JSON Parse error: Invalid value.")


def test_rows_of_values() -> None:
    assert read('{"instances": ["foo", "bar", "baz"]}', t=tf.string)["t"].tolist() == [b"foo", b"bar", b"baz"]
    array = read('{"instances": [[[1, 2]], [[3, 4]]]}', x=tf.float32)["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [[[1, 2]], [[3, 4]]]


def test_rows_of_objects() -> None:
    body = """{"instances": [
        {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
        {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]}]}"""
    tensors = read(body, tag=tf.string, signal=tf.int32, sensor=tf.float64)
    assert tensors["tag"].tolist() == [b"foo", b"bar"]
    assert tensors["signal"].tolist() == [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]]
    assert tensors["sensor"].tolist() == [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]


def test_columns() -> None:
    body = '{"inputs": {"tag": ["foo", "bar"], "one": 5, "bin": {"b64": "aGVsbG8="}}}'
    tensors = read(body, tag=tf.string, one=tf.int64, bin=tf.string)
    assert tensors["tag"].tolist() == [b"foo", b"bar"]
    assert tensors["one"].shape == ()
    assert tensors["bin"].shape == ()
    assert tensors["bin"].item() == b"hello"
    assert read('{"inputs": [[1], [2]]}', x=tf.int32)["x"].tolist() == [[1], [2]]
    assert read('{"inputs": {"b64": "aGk"}}', x=tf.string)["x"].item() == b"hi"


def test_base64_in_rows() -> None:
    body = '{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]}'
    assert read(body, x=tf.string)["x"].tolist() == [b"hello", b"world"]
    body = '{"instances": [{"x": [{"b64": "/w=="}, "a"]}]}'
    assert read(body, x=tf.string)["x"].tolist() == [[b"\xff", b"a"]]


def test_numbers_that_are_not_finite() -> None:
    array = read('{"instances": [NaN, Infinity, -Infinity, 1]}', x=tf.float32)["x"]
    assert np.isnan(array[0])
    assert array[1:].tolist() == [np.inf, -np.inf, 1]


def test_booleans_and_unsigned() -> None:
    assert read('{"instances": [true, false]}', x=tf.bool)["x"].tolist() == [True, False]
    assert read('{"instances": [18446744073709551615]}', x=tf.uint64)["x"].tolist() == [2**64 - 1]
    assert read('{"instances": [256, -1]}', x=tf.uint8)["x"].tolist() == [0, 255]  # a cast, as in the real server


def test_half_types() -> None:
    assert read('{"instances": [1.5]}', x=tf.float16)["x"].dtype == np.float16
    assert read('{"instances": [1.5, -2]}', x=tf.bfloat16)["x"].tolist() == [1.5, -2]


def test_empty_lists() -> None:
    assert read('{"inputs": []}', x=tf.float32)["x"].shape == (0,)
    assert read('{"instances": [[], []]}', x=tf.int32)["x"].shape == (2, 0)


def test_bytes_that_are_not_utf8_survive_in_strings() -> None:
    assert read(b'{"instances": ["\xff\xfe"]}', x=tf.string)["x"].tolist() == [b"\xff\xfe"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        ('{"instances": [1}', "JSON Parse error: "),
        ("[1]", "Is not object"),
        ("[" * 100_000, "JSON Parse error: "),
        ('{"signature_name": 5, "instances": [1]}', "'signature_name' key must be a string value."),
        ('{"instances": [1], "inputs": [1]}', "only one of 'inputs' or 'instances'"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": 1}', "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": [[1, 2], [3, 4], [5, 6, 7]]}', "Expecting tensor size: 2 but got: 3"),
        ('{"instances": [[1, 2], [3, 4], [[5, 6]]]}', "Expecting shape [2] but got: [1,2]"),
        ('{"instances": [[1, 2], ["a", "b"]]}', 'JSON Value: "a" Type: String is not of expected type: float'),
        ('{"instances": ["x", "y"]}', "Error: INVALID_ARGUMENT: JSON Value"),
        ('{"instances": [1, true]}', "Type: True is not of expected type: float"),
        ('{"instances": [1, null]}', "Type: Null is not of expected type: float"),
        ('{"instances": [16777217]}', "to float without loss of precision"),
        ('{"instances": [1.5, 16777217]}', "to float without loss of precision"),
        ('{"instances": [1e300]}', "to float without loss of precision"),
        ('{"instances": [{"y": 1}]}', "JSON object: does not have named input: y"),
        ('{"instances": [{"x": 1}, [1]]}', "Expecting object but got list at item 1"),
        ('{"instances": [[1], {"x": 1}]}', "Expecting value/list but got object at item 1"),
        ('{"inputs": {"y": 1}}', "Missing named input: x"),
        ('{"inputs": [[1], 2]}', "found at incorrect level"),
        ('{"inputs": [1, [2]]}', "Encountered list at unexpected level"),
        ('{"inputs": [[1], [2, 3]]}', "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ('{"inputs": ' + "[" * 300 + "]" * 300 + "}", "Encountered list at unexpected level"),
    ],
)
def test_refusals(body: str, words: str) -> None:
    assert words in refusal(body)


def test_refusals_of_other_types() -> None:
    assert "is not of expected type: int32" in refusal('{"instances": [1.0]}', x=tf.int32)
    assert "is not of expected type: int32" in refusal('{"instances": [2147483648]}', x=tf.int32)
    assert "is not of expected type: int64" in refusal('{"instances": [1e2]}', x=tf.int64)
    assert "is not of expected type: uint64" in refusal('{"instances": [-1]}', x=tf.uint64)
    assert "is not of expected type: bool" in refusal('{"instances": [1]}', x=tf.bool)
    assert "is not of expected type: string" in refusal('{"instances": [1]}', x=tf.string)
    assert "to double without loss" in refusal('{"instances": [9007199254740993]}', x=tf.float64)
    assert "Unable to base64 decode" in refusal('{"instances": [{"b64": "!"}]}', x=tf.string)
    assert "not formatted correctly for base64" in refusal('{"instances": [[{"b65": "aa"}]]}', x=tf.string)
    assert "surrogate" in refusal('{"instances": ["\\ud800"]}', x=tf.string)
    two = {"a": tf.float32, "b": tf.float32}
    assert "expecting list of objects" in refusal('{"instances": [1]}', **two)
    assert "expecting an object" in refusal('{"inputs": [1]}', **two)
    assert "keys must be equal to: a,b" in refusal('{"instances": [{"a": 1}]}', **two)


def test_types_without_a_json_form() -> None:
    with pytest.raises(RequestError) as refused:
        read('{"inputs": [1]}', x=tf.complex64)
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert "complex64" in refused.value.message


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans(), st.none())
nested = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
numeric = st.sampled_from([tf.float32, tf.float64, tf.float16, tf.int32, tf.int8, tf.uint32, tf.int64, tf.uint64])


@given(nested, numeric)
def test_the_short_way_never_differs_from_the_slow_one(value: Any, dtype: Any) -> None:
    text = json.dumps(value)
    enum = dtype.as_datatype_enum
    short = _Dense(can_shortcut="true" not in text and "false" not in text).shortcut(value, enum)
    if short is not None:
        slow = _read_slowly(value, enum)
        assert short.dtype == slow.dtype
        assert short.shape == slow.shape
        assert short.tobytes() == slow.tobytes()


# ---------------------------------------------------------------------------------------------------------- responses


def written(form: Format, **outputs: Any) -> Any:
    return json.loads(write_tensors({key: np.asarray(value) for key, value in outputs.items()}, form))


def test_one_output_has_no_name() -> None:
    y = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.int32)
    assert written(Format.ROW, y=y) == {"predictions": y.tolist()}
    assert written(Format.COLUMNAR, y=y) == {"outputs": y.tolist()}
    assert written(Format.COLUMNAR, y=np.int32(5)) == {"outputs": 5}


def test_several_outputs_have_names() -> None:
    outputs = {
        "d": np.array([8.0, 9.0]),
        "f": np.array([[1.0], [2.0]], np.float32),
        "s": np.array([["foo", "bär"], ["baz", "bat"]], object),
    }
    outputs["s"] = np.vectorize(str.encode, otypes=[object])(outputs["s"])
    assert written(Format.ROW, **outputs) == {
        "predictions": [{"d": 8.0, "f": [1.0], "s": ["foo", "bär"]}, {"d": 9.0, "f": [2.0], "s": ["baz", "bat"]}]
    }
    assert written(Format.COLUMNAR, **outputs) == {
        "outputs": {"d": [8.0, 9.0], "f": [[1.0], [2.0]], "s": [["foo", "bär"], ["baz", "bat"]]}
    }


def test_bytes_are_written_as_base64_by_the_name_of_the_output() -> None:
    hello = np.array([b"hello"], object)
    assert written(Format.ROW, x_bytes=hello) == {"predictions": [{"b64": "aGVsbG8="}]}
    assert written(Format.ROW, x=hello) == {"predictions": ["hello"]}
    assert b'["\xff"' in write_tensors({"x": np.array([b"\xff"], object)}, Format.ROW)


def test_decimals_as_the_real_server_writes_them() -> None:
    values = np.array([9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, 0.2, 1 / 3, np.nan, np.inf, -np.inf, 3, -0.0])
    text = write_tensors({"y": values.astype(np.float32)}, Format.ROW).decode()
    assert (
        "[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5, 0.2, 0.333333343, NaN, Infinity, -Infinity, 3.0, -0.0" in text
    )
    text = write_tensors({"y": values[6:8]}, Format.COLUMNAR).decode()
    assert "[0.2, 0.33333333333333331]" in text


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_floats_survive_the_way_through_json(values: list[float]) -> None:
    array = np.array(values, np.float32)
    back = np.array(written(Format.ROW, y=array)["predictions"], np.float64).astype(np.float32)
    np.testing.assert_array_equal(back, array)


def test_other_types() -> None:
    assert written(Format.ROW, y=np.array([True, False])) == {"predictions": [True, False]}
    assert written(Format.ROW, y=np.array([2**64 - 1], np.uint64)) == {"predictions": [2**64 - 1]}
    assert written(Format.ROW, y=tf.constant([1.5], tf.bfloat16).numpy()) == {"predictions": [1.5]}
    assert written(Format.ROW, y=np.zeros([0, 2], np.int32)) == {"predictions": []}
    assert written(Format.COLUMNAR, y=np.zeros([2, 0], np.float32)) == {"outputs": [[], []]}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "empty tensor map"),
        ({"y": np.int32(1)}, "no shape information"),
        ({"a": np.zeros([2]), "b": np.zeros([3])}, "inconsistent batch size: 3 expecting: 2"),
        ({"y": np.zeros([1], np.complex64)}, "tensor type: complex64"),
    ],
)
def test_outputs_that_rows_cannot_carry(outputs: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        write_tensors({key: np.asarray(value) for key, value in outputs.items()}, Format.ROW)
