"""Warm-up requests, replayed in the worker on a version that is not published yet, as a server will that loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mpru_tf import probes
from mpru_tf.errors import MPRUError, UnsupportedModelError, VerificationError, explain
from mpru_tf.saved_model.graph import Graph
from mpru_tf.warmup import WARMUP_FILE, read_warmup, write_warmup
from mpru_tf.warmup_requests import at_most, fixed_batch, in_turn, record, served, taken
from mpru_tf.worker import ASKING, Report

if TYPE_CHECKING:
    import numpy.typing as npt
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

    from mpru_tf.saved_model.session import LoadedModel
    from mpru_tf.serving.manager import ServableManager

WARM_UP = "warm-up record"
"""Stands in what a step of the replay is about."""

_HINT = "Leave warm-up requests out with --warmup none, or give others with --warmup FILE."


@dataclass(frozen=True)
class Replay:
    """What is to be done about warm-up requests in a load check.

    Attributes:
        makes_up: whether they are to be made up first.
        sizes: their batch sizes, if so.
        numbers: of each record, its number in the file that it came from; none for requests that are made up.
    """

    makes_up: bool
    sizes: tuple[int, ...]
    numbers: tuple[int, ...]


def warm_up(report: Report, about: str, loaded: LoadedModel, version_dir: Path, task: Replay) -> dict[str, Any]:
    """Replay the records of a version's warm-up file, which is written first if they are to be made up.

    Returns:
        'records', how many were replayed, and 'not_asked', signatures for which no request could be made up.

    Raises:
        VerificationError: a record is refused.
        UnsupportedModelError: no request could be made up.
        DataError: there would be too many, or they would be too large.
    """
    path = version_dir / WARMUP_FILE
    not_asked: list[str] = []
    if task.makes_up:
        report(ASKING, about)
        made, not_asked = _made_up(loaded, task.sizes)
        write_warmup(path, made)
    count = 0
    for count, log in enumerate(read_warmup(path), 1):
        number = task.numbers[count - 1] if task.numbers else count
        report(ASKING, f"{about} ({WARM_UP} {number})")
        refusal = _refusal(loaded, log)
        if refusal:
            source = _named(log) if task.makes_up else f"record {number}"
            raise VerificationError(
                explain(
                    "The new version refuses a warm-up request, so no server would load it; it was not published.",
                    received=f"{source}: {refusal}",
                    hint=_HINT,
                )
            )
    return {"records": count, "not_asked": not_asked}


def _refusal(loaded: LoadedModel, log: Any) -> str:
    """What a server would answer in place of an answer, or ''."""
    from mpru_tf.serving import loading
    from mpru_tf.serving.servable import Servable
    from mpru_tf.serving.status import RequestError

    servable = Servable("model", 1, loaded)
    try:
        loading.answer_record(cast("ServableManager", loading.Alone(servable)), servable, log)
    except RequestError as error:
        return str(error)
    return ""


def _named(log: Any) -> str:
    """A made-up record, in words."""
    request = getattr(log, log.WhichOneof("log_type")).request
    return f"a request made up for signature {request.model_spec.signature_name}"


# ---------------------------------------------------------------------------------------------------------- made up
def _made_up(loaded: LoadedModel, sizes: Sequence[int]) -> tuple[list[Any], list[str]]:
    """Records for every signature that answers a made-up request, and the signatures that do not."""
    from tensorflow_serving.apis import prediction_log_pb2

    made: list[list[Any]] = []
    not_asked = []
    reason = "it has no signature for clients"
    for name, signature in served(loaded.signatures).items():
        found = _answered(loaded, name, signature)
        if isinstance(found, str):
            reason = f"{name}: {found}"
            not_asked.append(name)
        else:
            made.append(list(_in_sizes(name, signature, found, sizes)))
    if not made:
        raise UnsupportedModelError(
            explain("No warm-up request could be made up that the model answers.", received=reason, hint=_HINT)
        )
    records = at_most(in_turn(*made), sum(map(len, made)))
    return [prediction_log_pb2.PredictionLog.FromString(data) for data in records], not_asked


def _answered(loaded: LoadedModel, name: str, signature: SignatureDef) -> Mapping[str, npt.NDArray[Any]] | str:
    """The likeliest request that a signature answers, or why there is none."""
    import tensorflow as tf

    reason = "no request could be made up"
    for request in probes.requests(signature, Graph(loaded.meta_graph)):
        try:
            loaded.run(name, request)
        except (tf.errors.OpError, MPRUError, ValueError) as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            continue
        return request
    return reason


def _in_sizes(
    name: str, signature: SignatureDef, inputs: Mapping[str, npt.NDArray[Any]], sizes: Sequence[int]
) -> Iterator[Any]:
    """The same request in every batch size, examples repeated; in its only one if the signature fixes the batch."""
    open_axes = {
        key
        for key, info in signature.inputs.items()
        if inputs[key].ndim and (info.tensor_shape.unknown_rank or info.tensor_shape.dim[0].size < 0)
    }
    if fixed_batch(signature) or not open_axes:
        yield record(name, signature, inputs)
        return
    for size in sizes:
        resized = {
            key: taken({key: array}, np.arange(size) % len(array))[key] if key in open_axes else array
            for key, array in inputs.items()
        }
        yield record(name, signature, resized)
