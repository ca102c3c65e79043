"""Warm-up files: TFRecords of PredictionLog, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from mpru_tf.errors import CorruptModelError, DataError
from mpru_tf.warmup import MOST_RECORDS, WARMUP_FILE, read_warmup, write_warmup


def log(number: int) -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "m"
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto([number]))
    return log


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "1" / WARMUP_FILE
    logs = [log(number) for number in range(3)]
    assert write_warmup(path, iter(logs)) == 3
    assert list(read_warmup(path)) == logs
    assert write_warmup(path, []) == 0
    assert list(read_warmup(path)) == []


def test_too_many_records_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "warmup"
    assert write_warmup(path, [log(0)] * MOST_RECORDS) == MOST_RECORDS
    before = path.read_bytes()
    with pytest.raises(DataError, match="at most 1000"):
        write_warmup(path, [log(0)] * (MOST_RECORDS + 1))
    assert path.read_bytes() == before


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "warmup"
    write_warmup(path, [log(0), log(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    reader = read_warmup(path)
    assert next(reader) == log(0)
    with pytest.raises(CorruptModelError, match="TFRecord"):
        next(reader)
    path.write_bytes(b"not records at all" * 10)
    with pytest.raises(CorruptModelError, match="TFRecord format"):
        list(read_warmup(path))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xff\xff")
    with pytest.raises(CorruptModelError, match="Failed to parse warmup record"):
        list(read_warmup(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(read_warmup(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write_warmup(tmp_path / "file" / "below", [log(0)])
