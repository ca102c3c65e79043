"""Reading a SavedModel from disk: whole, damaged, incomplete, stored in another form."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import saved_models
from conftest import ModelStore

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, MPRUError, UnsupportedModelError
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


@pytest.mark.parametrize(("name", "form"), [("saved_model.pbtxt", "text"), ("saved_model.cpb", "chunked")])
def test_other_forms_are_named(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert bundles.has_saved_model(tmp_path)
    refused(tmp_path, UnsupportedModelError, form)


def test_a_chunked_model_of_today_is_named(models: ModelStore, tmp_path: Path) -> None:
    """A directory in which TensorFlow itself put saved_model.cpb beside no saved_model.pb."""
    shutil.copytree(models.pristine("keras3"), tmp_path / "1")
    (tmp_path / "1" / "saved_model.pb").rename(tmp_path / "1" / "saved_model.cpb")
    refused(tmp_path / "1", UnsupportedModelError, "chunked")


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
    import tensorflow as tf

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
