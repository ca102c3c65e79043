"""Reading a SavedModel from disk: whole, damaged, incomplete, stored in another form."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import saved_models
import tensorflow as tf
from conftest import ModelStore
from google.protobuf import text_format
from google.protobuf.message import DecodeError, EncodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import mpru_tf
from mpru_tf.errors import CorruptModelError, LeakError, ModelNotFoundError, MPRUError, UnsupportedModelError
from mpru_tf.saved_model import bundle as bundles

DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture
def version(models: ModelStore, tmp_path: Path) -> Path:
    return models.base("keras3", tmp_path) / "1"


def refused(version: Path, error: type[MPRUError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        bundles.read(version)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", saved_models.MAKERS)
def test_every_kind_of_export_is_read_as_it_lies_on_disk(models: ModelStore, name: str) -> None:
    path = models.pristine(name)
    bundle = bundles.read(path)
    data = (path / "saved_model.pb").read_bytes()
    assert bundle.sha256 == hashlib.sha256(data).hexdigest()
    assert len(bundle.proto.SerializeToString()) == len(data)
    assert bundle.directory == path
    assert not bundle.names_filter
    assert [graph.index for graph in bundle.graphs()] == list(range(len(bundle.meta_graphs)))


def test_reading_changes_nothing(version: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in version.rglob("*")}
    bundles.read(version)
    assert {file: file.stat().st_mtime_ns for file in version.rglob("*")} == before


def test_no_model(tmp_path: Path) -> None:
    refused(tmp_path, ModelNotFoundError, "no saved_model.pb")
    assert not bundles.has_saved_model(tmp_path)


def as_text(version: Path) -> Path:
    """Store a version's SavedModel as text instead."""
    proto = bundles.read(version).proto
    (version / "saved_model.pb").unlink()
    path = version / "saved_model.pbtxt"
    path.write_text(text_format.MessageToString(proto), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["keras3", "tf1_classify"])
def test_text_says_the_same_as_bytes(models: ModelStore, tmp_path: Path, name: str) -> None:
    version = models.base(name, tmp_path) / "1"
    before = bundles.read(version)
    data = as_text(version).read_bytes()
    bundle = bundles.read(version)
    assert bundle.proto == before.proto
    assert bundle.sha256 == hashlib.sha256(data).hexdigest()
    assert bundles.has_saved_model(version)


def test_a_class_is_forgotten_in_text_and_the_new_version_is_stored_as_bytes(version: Path) -> None:
    as_text(version)
    result = mpru_tf.forget(version, [3])
    assert result.load_check["status"] == "passed"
    assert mpru_tf.verify(result.path).passed
    assert not (result.path / "saved_model.pbtxt").exists()


def test_a_filter_s_name_is_noticed_in_text_however_it_is_spelled(version: Path) -> None:
    path = as_text(version)
    assert not bundles.read(version).names_filter
    proto = SavedModel()
    proto.meta_graphs.add().graph_def.node.add(name="mpru_filter/Neg", op="NoOp")
    path.write_text(text_format.MessageToString(proto).replace("mpru", "\\155pru"), encoding="utf-8")
    assert bundles.read(version).names_filter


def test_bytes_are_preferred_to_text_and_to_chunks_as_servers_do(version: Path) -> None:
    (version / "saved_model.pbtxt").write_text("no SavedModel")
    (version / "saved_model.cpb").write_bytes(b"no SavedModel")
    assert bundles.read(version).meta_graphs
    (version / "saved_model.pb").unlink()
    refused(version, CorruptModelError, "saved_model.pbtxt is not a SavedModel")
    (version / "saved_model.pbtxt").unlink()
    refused(version, UnsupportedModelError, "stored in chunks")


def test_what_tensorflow_s_own_loader_prefers(version: Path) -> None:
    """The truth that the order above is held against."""
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    (version / "saved_model.pbtxt").write_text("no SavedModel")
    (version / "saved_model.cpb").write_bytes(b"no SavedModel")
    assert parse_saved_model(str(version)) == bundles.read(version).proto
    (version / "saved_model.pb").unlink()
    with pytest.raises(OSError, match="pbtxt"):
        parse_saved_model(str(version))
    (version / "saved_model.pbtxt").unlink()
    with pytest.raises(OSError, match="does not exist"):
        parse_saved_model(str(version))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"saved_model_schema_version: 1", "no MetaGraph"),
        (b"", "no MetaGraph"),
        (b"meta_graphs { no_such_field: 1 }", "1:.*no_such_field"),
        (b"meta_graphs {", "not a SavedModel, or only a part"),
        (b"\xff\xfe", "not UTF-8 at position 0"),
        (b"meta_graphs { object_graph_def {" * 5000, "not a SavedModel|nested too deeply"),
        (
            b"meta_graphs { signature_def { value { inputs { value { " + b"composite_tensor { components { " * 5000,
            "deep|part",
        ),
    ],
)
def test_damaged_text(tmp_path: Path, text: bytes, match: str) -> None:
    (tmp_path / "saved_model.pbtxt").write_bytes(text)
    refused(tmp_path, CorruptModelError, match)


def test_chunks_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "saved_model.cpb").write_bytes(b"")
    assert bundles.has_saved_model(tmp_path)
    refused(tmp_path, UnsupportedModelError, "TensorFlow Serving does not read.*without experimental_image_format")


@pytest.mark.parametrize("name", bundles.SAVED_MODEL_FORMS[:2])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str) -> None:
    """A named pipe would keep its reader waiting for ever."""
    os.mkfifo(tmp_path / name)
    refused(tmp_path, CorruptModelError, "is no file.*a pipe")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    refused(tmp_path, CorruptModelError, "is no file.*a directory")
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("/dev/zero")
    refused(tmp_path, CorruptModelError, "is no file.*a device")


@pytest.mark.parametrize("target", ["nowhere", "saved_model.pb"])
def test_links_that_lead_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "saved_model.pb").symlink_to(target)
    refused(tmp_path, ModelNotFoundError, "cannot be read")


# --------------------------------------------------------------------------------------------------------- the net
@pytest.mark.parametrize(
    ("error", "match"),
    [
        (IndexError("list index out of range"), "more inputs or outputs.*IndexError: list index out of range"),
        (KeyError("a"), "names something"),
        (AssertionError(), "contradict each other.*Received: AssertionError\\."),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "more memory"),
        (OverflowError("int too big"), "too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
        (TypeError("first line\nsecond line"), "TypeError: first line\\."),
        (AttributeError("x"), "contradict"),
        (ValueError("x"), "contradict"),
        (DecodeError("x"), "DecodeError"),
        (EncodeError("x"), "EncodeError"),
        (tf.errors.InvalidArgumentError(None, None, "x"), "InvalidArgumentError: x"),
    ],
)
def test_whatever_damage_makes_python_stumble_over_becomes_an_error_in_words(error: Exception, match: str) -> None:
    with pytest.raises(CorruptModelError, match=match) as caught, bundles.damaged_as_error(Path("models/1")):
        raise error
    assert "\n" not in str(caught.value)
    assert "models/1" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), KeyboardInterrupt(), SystemExit(), LeakError("x"), StopIteration()]
)
def test_what_is_not_damage_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, bundles.damaged_as_error(Path("models/1")):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_model(version: Path, left: float) -> None:
    path = version / "saved_model.pb"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left)])
    refused(version, CorruptModelError, "only a part|no MetaGraph")


def test_text_in_place_of_a_model(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(version, CorruptModelError, "not a SavedModel")


def test_missing_variables(version: Path) -> None:
    (version / DATA).unlink()
    refused(version, CorruptModelError, "data file")
    (version / "variables" / "variables.index").unlink()
    refused(version, CorruptModelError, "values are missing")
    shutil.rmtree(version / "variables")
    refused(version, CorruptModelError, "values are missing")


def test_shards_are_counted(version: Path) -> None:
    data, folder = version / DATA, version / "variables"
    for number in (0, 2):
        shutil.copy(data, folder / f"variables.data-0000{number}-of-00003")
    data.unlink()
    refused(version, CorruptModelError, "00000-of-00003, variables.data-00002-of-00003")
    shutil.copy(folder / "variables.data-00000-of-00003", folder / "variables.data-00001-of-00003")
    bundles.read(version)


def test_a_model_without_variables_needs_none(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    module.f = tf.function(lambda x: {"y": x @ tf.eye(4)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures=module.f)
    shutil.rmtree(tmp_path / "variables")
    bundle = bundles.read(tmp_path)
    assert bundles.index_digest(tmp_path) is None
    assert bundle.meta_graphs


def test_index_digest_changes_with_the_weights(models: ModelStore) -> None:
    digests = {bundles.index_digest(models.pristine(name)) for name in ("two_functions", "embedding", "ensemble")}
    assert len(digests) == 3
    assert None not in digests


def test_a_filter_s_name_is_noticed_anywhere(version: Path) -> None:
    bundle = bundles.read(version)
    bundle.proto.meta_graphs[0].graph_def.library.function[0].node_def.add(name="mpru_filter/Neg", op="NoOp")
    (version / "saved_model.pb").write_bytes(bundle.proto.SerializeToString())
    assert bundles.read(version).names_filter


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc, which has a file that nobody can read")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").symlink_to("/proc/self/mem")
    refused(tmp_path, ModelNotFoundError, "cannot be read")
