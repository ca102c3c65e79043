"""Labels found in the graph: what real exporters write, and what only looks like labels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.label_sources import (
    ANSWERED,
    VOCABULARY,
    LabelSource,
    find_label_sources,
    string_elements,
)

NAMES = ["ant", "bee", "crane, bird", "dög"]
Answer = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def save(path: Path, answer: Answer, module: tf.Module | None = None) -> None:
    """A linear classifier of 3 features whose probabilities ``answer`` turns into outputs."""
    module = module or tf.Module()
    module.w = tf.Variable(np.random.default_rng(0).standard_normal((3, len(NAMES))), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")], autograph=False)
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        p = tf.nn.softmax(x @ module.w)
        return {"probabilities": p, **answer(p)}

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


def found(path: Path, classes: int = len(NAMES)) -> tuple[LabelSource, ...]:
    return find_label_sources(bundles.read(path).graphs(), path, classes)


def best(p: tf.Tensor) -> tf.Tensor:
    return tf.argmax(p, axis=-1)


def with_table(initializer: Any, default: str = "?") -> tuple[tf.Module, Any]:
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(initializer, default)
    return module, module.table


class TestConstants:
    @pytest.mark.parametrize(
        "answer",
        [
            lambda p: {"name": tf.gather(tf.constant(NAMES), best(p))},
            lambda p: {"name": tf.gather(NAMES, tf.math.top_k(p, 3).indices)},
            lambda p: {"name": tf.gather(tf.identity(NAMES), tf.cast(tf.math.top_k(p, 3)[1][:, :2], tf.int64))},
            lambda p: {"all": tf.tile(tf.constant(NAMES)[tf.newaxis], [tf.shape(p)[0], 1])},
            lambda p: {"all": tf.tile(tf.constant([NAMES]), [tf.shape(p)[0], 1])},
            lambda p: {"name": tf.where(tf.reduce_max(p, -1) > 0.5, tf.gather(NAMES, best(p)), "unsure")},
        ],
        ids=["gather", "top_k", "picked ids", "tiled", "a row", "or unsure"],
    )
    def test_in_a_function(self, tmp_path: Path, answer: Answer) -> None:
        save(tmp_path / "1", answer)
        sources = found(tmp_path / "1")
        assert {(source.labels, source.strength) for source in sources} == {(tuple(NAMES), ANSWERED)}
        assert all(source.where.startswith("constant __inference") for source in sources)

    @pytest.mark.parametrize(
        "answer",
        [
            lambda p: {"name": tf.gather(NAMES, (best(p) + 1) % len(NAMES))},
            lambda p: {"name": tf.gather(NAMES, tf.gather([3, 2, 1, 0], best(p)))},
            lambda p: {"all": tf.tile(tf.constant(NAMES)[tf.newaxis, ::-1], [tf.shape(p)[0], 1])},
            lambda p: {"name": tf.gather(["zebra", *NAMES], best(p))},
            lambda p: {"name": tf.gather([name.encode("latin-1") for name in NAMES], best(p))},
            lambda p: {"name": tf.gather([*NAMES[:-1], ""], best(p))},
        ],
        ids=["shifted", "mapped on", "reversed", "one more", "not text", "empty"],
    )
    def test_not_taken(self, tmp_path: Path, answer: Answer) -> None:
        save(tmp_path / "1", answer)
        assert found(tmp_path / "1") == ()

    def test_an_input_vocabulary_is_none(self, tmp_path: Path) -> None:
        module, table = with_table(tf.lookup.KeyValueTensorInitializer(NAMES, tf.range(len(NAMES), dtype=tf.int64)), -1)
        module.w = tf.Variable(np.ones((4, 4)), dtype=tf.float32)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def serve(words: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"p": tf.nn.softmax(tf.one_hot(table.lookup(words), 4) @ module.w), "echo": words}

        tf.saved_model.save(module, str(tmp_path / "1"), signatures=serve)
        assert found(tmp_path / "1") == ()

    def test_tensorflow_1(self, tmp_path: Path) -> None:
        """As estimators write it: a table for the class, a tiled constant for all of them; twice the same labels."""
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 3], name="x")
            p = tf.nn.softmax(x @ v1.get_variable("w", [3, len(NAMES)]))
            table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(tf.range(len(NAMES), dtype=tf.int64), tf.constant(NAMES)), "UNK"
            )
            outputs = {
                "classes": table.lookup(best(p)[:, tf.newaxis]),
                "all_classes": tf.tile(tf.constant(NAMES, name="names")[tf.newaxis], [tf.shape(p)[0], 1]),
            }
            session.run([v1.global_variables_initializer(), v1.tables_initializer()])
            v1.saved_model.simple_save(
                session, str(tmp_path / "1"), {"x": x}, outputs, legacy_init_op=v1.tables_initializer()
            )
        sources = found(tmp_path / "1")
        assert {source.labels for source in sources} == {tuple(NAMES)}
        assert {source.where.split()[0] for source in sources} == {"constant", "table"}


class TestTables:
    def test_by_key_in_any_order(self, tmp_path: Path) -> None:
        ids = tf.constant([2, 0, 3, 1], tf.int64)
        values = tf.gather(NAMES, ids)
        module, table = with_table(tf.lookup.KeyValueTensorInitializer(ids, values))
        save(tmp_path / "1", lambda p: {"name": table.lookup(best(p))}, module)
        (source,) = found(tmp_path / "1")
        assert source.labels == tuple(NAMES)
        assert source.where.startswith("table ")

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    @pytest.mark.parametrize("out_of_vocabulary", [0, 1])
    def test_string_lookup_of_keras(self, tmp_path: Path, library: str, out_of_vocabulary: int) -> None:
        """Its table may begin at id 1: id 0 is out of vocabulary, and the table answers it with its default."""
        labels, module = [*["[UNK]"][:out_of_vocabulary], *NAMES[out_of_vocabulary:]], tf.Module()
        module.lookup = importlib.import_module(library).layers.StringLookup(
            vocabulary=NAMES[out_of_vocabulary:], invert=True, num_oov_indices=out_of_vocabulary
        )
        save(tmp_path / "1", lambda p: {"names": module.lookup(tf.math.top_k(p, 2).indices)}, module)
        assert [source.labels for source in found(tmp_path / "1")] == [tuple(labels)]

    def test_ids_beside_the_classes(self, tmp_path: Path) -> None:
        ids = tf.range(1, len(NAMES) + 1, dtype=tf.int64)
        module, table = with_table(tf.lookup.KeyValueTensorInitializer(ids, tf.constant(NAMES)))
        save(tmp_path / "1", lambda p: {"name": table.lookup(best(p) + 1)}, module)
        assert found(tmp_path / "1") == ()

    @pytest.mark.parametrize(
        ("lines", "key", "value"),
        [
            (NAMES, tf.lookup.TextFileIndex.LINE_NUMBER, tf.lookup.TextFileIndex.WHOLE_LINE),
            ([f"{3 - i}\t{name}" for i, name in enumerate(reversed(NAMES))], 0, 1),
        ],
        ids=["lines", "columns"],
    )
    def test_text_file(self, tmp_path: Path, lines: list[str], key: int, value: int) -> None:
        file = tmp_path / "names_of_animals.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        initializer = tf.lookup.TextFileInitializer(str(file), tf.int64, key, tf.string, value, delimiter="\t")
        module, table = with_table(initializer)
        save(tmp_path / "1", lambda p: {"name": table.lookup(best(p))}, module)
        (source,) = found(tmp_path / "1")
        assert (source.labels, source.where) == (tuple(NAMES), "asset assets/names_of_animals.txt")
        (tmp_path / "1" / "assets" / "names_of_animals.txt").write_text("one\n" * 3)
        assert found(tmp_path / "1") == ()

    @pytest.mark.parametrize("name", ["../names.txt", "/names.txt", "a\0b"])
    def test_assets_elsewhere_are_not_read(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / "names.txt"
        file.write_text("\n".join(NAMES), encoding="utf-8")
        module, table = with_table(tf.lookup.TextFileInitializer(str(file), tf.int64, -1, tf.string, -2))
        save(tmp_path / "1", lambda p: {"name": table.lookup(best(p))}, module)
        read = bundles.read(tmp_path / "1")
        assert len(find_label_sources(read.graphs(), tmp_path / "1", len(NAMES))) == 1
        read.proto.meta_graphs[0].asset_file_def[0].filename = name
        assert find_label_sources(read.graphs(), tmp_path / "1", len(NAMES)) == ()

    @pytest.mark.parametrize(("name", "strengths"), [("label_vocabulary", [VOCABULARY]), ("words", [])])
    def test_vocabulary_of_labels(self, tmp_path: Path, name: str, strengths: list[int]) -> None:
        """What turned labels into ids for training may lie in the model without answering anybody."""
        initializer = tf.lookup.KeyValueTensorInitializer(NAMES, tf.range(len(NAMES), dtype=tf.int64))
        module = tf.Module()
        module.table = tf.lookup.StaticHashTable(initializer, -1, name=name)
        save(tmp_path / "1", lambda p: {"words": tf.as_string(module.table.lookup(tf.as_string(best(p))))}, module)
        sources = found(tmp_path / "1")
        assert [source.strength for source in sources] == strengths
        assert all(source.labels == tuple(NAMES) for source in sources)


class TestStringElements:
    def test_written_in_one_piece(self) -> None:
        values = [b"", b"a" * 200, b"\xff\x00"]
        content = bytes([0]) + bytes([200 & 0x7F | 0x80, 1]) + bytes([2]) + b"".join(values)
        tensor = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=content)
        tensor.tensor_shape.dim.add(size=3)
        assert list(tf.make_ndarray(tf.make_tensor_proto(values))) == values
        assert string_elements(tensor) == values

    @pytest.mark.parametrize("content", [b"\x01", b"\x01\x05a", b"\xff\xff\xff\xff\xff\xff", b"\x00\x00zz"])
    def test_damaged(self, content: bytes) -> None:
        tensor = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=content)
        tensor.tensor_shape.dim.add(size=2)
        assert string_elements(tensor) is None

    def test_a_size_that_lies(self) -> None:
        tensor = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=b"\x00" * 8)
        tensor.tensor_shape.dim.add(size=2**60)
        assert string_elements(tensor) is None


def test_guesslang(shared: Path) -> None:
    path = shared / "zoo" / "guesslang_estimator" / "1"
    sources = found(path, 30)
    assert len(sources) == 3
    assert {source.labels for source in sources} == {sources[0].labels}
    assert sources[0].labels[:3] == ("bat", "c", "cs")
