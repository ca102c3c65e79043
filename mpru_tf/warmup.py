"""Warm-up files: the requests that a model server replays before a version answers anyone.

``assets.extra/tf_serving_warmup_requests`` in a version directory is a TFRecord file of ``PredictionLog`` messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mpru_tf.errors import CorruptModelError, DataError, explain

#: Where a version directory has its warm-up file.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"

_NODE = re.compile(r"\{\{function_node .*?\}\} | \[Op:\w+\] name: *$")

#: With more records than this, TensorFlow Serving refuses to load the version.
MOST_RECORDS = 1000


def read_warmup(path: str | Path) -> Iterator[Any]:
    """Yield the ``PredictionLog`` messages of a warm-up file, one at a time, however many there are.

    Raises:
        CorruptModelError: the file is no TFRecord file, is cut short, or holds something else; its cause is what
            TensorFlow, or protobuf, says.
        OSError: there is no such file, or it cannot be read.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    path = Path(path)
    with path.open("rb"):
        pass  # TensorFlow's own error for a missing file is no OSError
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except tf.errors.OpError as error:
        reason = f"{_NODE.sub('', error.message)}. Please verify your warmup data is in TFRecord format."
        raise CorruptModelError(explain(f"{path} cannot be read.", hint=reason)) from error
    except DecodeError as error:
        raise CorruptModelError(explain(f"Failed to parse warmup record from {path}.", hint=str(error))) from error


def write_warmup(path: str | Path, logs: Iterable[Any]) -> int:
    """Write ``PredictionLog`` messages to a warm-up file, and return how many there were.

    The folder is made; a file that is there is replaced.

    Raises:
        DataError: more than 1000 records, which TensorFlow Serving would refuse; nothing is written.
        OSError: the file cannot be written.
    """
    import tensorflow as tf

    records = [log.SerializeToString(deterministic=True) for log in logs]
    if len(records) > MOST_RECORDS:
        raise DataError(
            explain("These are too many warm-up records.", received=len(records), valid=f"at most {MOST_RECORDS}")
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("wb").close()  # as above: an OSError, if any
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return len(records)
