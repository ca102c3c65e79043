"""What Classify, Regress and MultiInference check and answer, in the real server's order and words.

They differ from Predict in that a request carries ``tf.Example`` messages, not tensors, and that the SignatureDef says
which answer it gives:

================================  ==========  ===================================================================
method name                       input key   output keys
================================  ==========  ===================================================================
``tensorflow/serving/classify``   ``inputs``  ``classes`` string [batch, n] and/or ``scores`` float32 [batch, n]
``tensorflow/serving/regress``    ``inputs``  ``outputs`` float32 [batch] or [batch, 1]
================================  ==========  ===================================================================

The input is one serialized ``tf.Example`` per row, string [batch].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from mpru_tf.errors import UnsupportedModelError
from mpru_tf.saved_model.session import Step
from mpru_tf.serving.servable import DEFAULT_SIGNATURE, Servable, Signature
from mpru_tf.serving.status import RequestError, from_tensorflow, invalid_argument
from mpru_tf.serving.tensors import dtype_name

Array = npt.NDArray[Any]

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

_INPUT = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_REGRESSIONS = "outputs"


@dataclass(frozen=True)
class Classes:
    """The answer of Classify: labels, scores or both, of equal shapes.

    Attributes:
        labels: ``bytes``, object [batch, classes].
        scores: float32 [batch, classes].
    """

    labels: Array | None
    scores: Array | None


def classify(servable: Servable, signature_name: str, request_input: Any) -> Classes:
    """Answer a Classify request.

    Args:
        servable: the version that answers.
        signature_name: the signature key; empty means ``serving_default``.
        request_input: the request's ``Input``.

    Raises:
        RequestError: INVALID_ARGUMENT no such signature, or one of another method, no examples, or outputs of the
            wrong dtype or shape; FAILED_PRECONDITION a signature with other keys; otherwise the graph's own error.
    """
    results, batch = _one(servable, signature_name, request_input, CLASSIFY)
    return _classes(results, batch)


def regress(servable: Servable, signature_name: str, request_input: Any) -> Array:
    """Answer a Regress request: float32 [batch]. Arguments and errors as :func:`classify`."""
    results, batch = _one(servable, signature_name, request_input, REGRESS)
    return _regressions(results, batch)


def infer(servable: Servable, tasks: Sequence[Any], request_input: Any) -> list[Classes | Array]:
    """Answer all tasks of a MultiInference request in one run of the model.

    Args:
        servable: the version that the first task asks for; it answers all of them.
        tasks: ``InferenceTask`` messages, at least one.
        request_input: the request's ``Input``.

    Returns:
        What :func:`classify` or :func:`regress` would return, for each task.

    Raises:
        RequestError: as :func:`classify`; also INVALID_ARGUMENT for tasks with different models or input tensors, or
            a signature named twice; UNIMPLEMENTED for any other method.
    """
    signatures: dict[str, Signature] = {}
    wanted: list[dict[str, str]] = []  # per task: tensor name by output key
    feed = ""
    for task in tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in signatures:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        if key not in servable.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {key}")
        signature = signatures[key] = servable.signatures[key]
        if task.method_name not in _OUTPUT_KEYS:
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        keys = _output_keys(servable, signature, task.method_name)
        if feed and feed != signature.feed_names[_INPUT]:
            raise invalid_argument("Input tensor must be the same for all Signatures.")
        feed = signature.feed_names[_INPUT]
        outputs = servable.model.signatures[key].outputs
        wanted.append({output: outputs[output].name for output in keys})
    examples = serialized_examples(request_input)
    _check_dtype(next(iter(signatures.values())))
    fetches = tuple(sorted({name for names in wanted for name in names.values()}))
    found = dict(zip(fetches, _run(lambda: servable.model.joint_step((feed,), fetches), examples), strict=True))
    answers: list[Classes | Array] = []
    for task, names in zip(tasks, wanted, strict=True):
        results = {key: found[name] for key, name in names.items()}
        read = _classes if task.method_name == CLASSIFY else _regressions
        answers.append(read(results, len(examples)))
    return answers


def serialized_examples(request_input: Any) -> Array:
    """Return the examples of an ``Input``, each as bytes, object [batch].

    A context stands in front of each example: parsed as one message, its features are added to those of the example.

    Raises:
        RequestError: INVALID_ARGUMENT, there are none.
    """
    kind = request_input.WhichOneof("kind")
    examples = getattr(request_input, kind).examples if kind else ()
    if not examples:
        raise invalid_argument("Input is empty.")
    context = request_input.example_list_with_context.context.SerializeToString() if "context" in kind else b""
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _one(servable: Servable, signature_name: str, request_input: Any, method: str) -> tuple[dict[str, Array], int]:
    """Run one signature; return its outputs by key, and the number of examples."""
    key = signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {key}")
    outputs = _output_keys(servable, signature, method)
    examples = serialized_examples(request_input)
    _check_dtype(signature)
    results = _run(lambda: servable.model.step(signature.name, outputs), examples)
    return dict(zip(outputs, results, strict=True)), len(examples)


def _run(step: Callable[[], Step], examples: Array) -> list[Array]:
    try:
        return step()(examples)
    except tf.errors.OpError as error:
        raise from_tensorflow(error) from error
    except UnsupportedModelError as error:  # sparse or composite tensors in the signature
        raise invalid_argument(str(error)) from error


# ------------------------------------------------------------------------------------------ what a signature must be


def _output_keys(servable: Servable, signature: Signature, method: str) -> tuple[str, ...]:
    """Check that a signature is one of this method, and return which outputs to ask for."""
    if signature.method_name != method:
        kind = "classification" if method == CLASSIFY else "regression"
        raise invalid_argument(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    return _OUTPUT_KEYS[method](signature, servable.model.signatures[signature.name])


def _classify_keys(signature: Signature, definition: Any) -> tuple[str, ...]:
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if _INPUT not in signature.inputs:
        raise _precondition(f"No classification inputs found in SignatureDef: {definition}")
    keys = tuple(key for key in (_CLASSES, _SCORES) if key in signature.outputs)
    if not keys:
        raise _precondition(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {definition}"
        )
    return keys


def _regress_keys(signature: Signature, definition: Any) -> tuple[str, ...]:
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUT not in signature.inputs:
        raise _precondition(f"No regression inputs found in SignatureDef: {definition}")
    if _REGRESSIONS not in signature.outputs:
        raise _precondition(f"No regression outputs found in SignatureDef: {definition}")
    return (_REGRESSIONS,)


_OUTPUT_KEYS = {CLASSIFY: _classify_keys, REGRESS: _regress_keys}


def _precondition(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)


def _check_dtype(signature: Signature) -> None:
    dtype = signature.inputs[_INPUT]
    if dtype != types_pb2.DT_STRING:  # a compiled callable does not check what it is fed
        raise invalid_argument(f"Expects arg[0] to be {dtype_name(dtype)} but string is provided")


# ------------------------------------------------------------------------------------------- what came out of the run


def _classes(results: Mapping[str, Array], batch: int) -> Classes:
    for key, dtype in ((_CLASSES, types_pb2.DT_STRING), (_SCORES, types_pb2.DT_FLOAT)):
        array = results.get(key)
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if _dtype(array) != dtype:
            name = types_pb2.DataType.Name
            raise invalid_argument(f"Expected {key} Tensor of {name(dtype)}. Got: {name(_dtype(array))}")
        if len(array) != batch:
            raise invalid_argument(f"Expected {key} output batch size of {batch}. Got: {len(array)}")
    labels, scores = results.get(_CLASSES), results.get(_SCORES)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    return Classes(labels, scores)


def _regressions(results: Mapping[str, Array], batch: int) -> Array:
    array = results[_REGRESSIONS]
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != batch:
        raise invalid_argument(f"Input batch size did not match output batch size: {batch} vs. {len(array)}")
    if _dtype(array) != types_pb2.DT_FLOAT:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {types_pb2.DataType.Name(_dtype(array))}")
    return array.reshape(batch)


def _dtype(array: Array) -> Any:
    return tf.as_dtype(array.dtype).as_datatype_enum


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
