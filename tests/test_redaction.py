"""Redaction: the label is gone from every file, everything else is as it was, and what cannot be done is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import mpru_tf
import mpru_tf.redaction
from mpru_tf.errors import LabelsError
from mpru_tf.manifest import MANIFEST, read_manifest
from mpru_tf.redaction import Redaction
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.versions import link_tree

PEOPLE = ["Ann Lee", "Bob", "Renée Dupont", "Ann Leeson", "Bo"]
X = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)


class Module(tf.Module):
    """A linear classifier of 6 features."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.w = tf.Variable(np.random.default_rng(0).standard_normal((6, len(PEOPLE))), dtype=tf.float32)

    def scores(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(x @ self.w)


def save(path: Path, module: tf.Module, answer: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]) -> None:
    spec = tf.TensorSpec([None, 6], tf.float32, name="x")
    module.serve = tf.function(answer, input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(path), signatures=module.serve)


def constants(path: Path) -> None:
    """Labels as constants in a function."""
    module = Module()

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        p = module.scores(x)
        return {
            "p": p,
            "name": tf.gather(tf.constant(PEOPLE), tf.argmax(p, -1)),
            "all": tf.tile(tf.constant([PEOPLE]), [tf.shape(p)[0], 1]),
            "note": tf.repeat(tf.constant(["found: " + ", ".join(PEOPLE)]), tf.shape(p)[0]),
        }

    save(path, module, answer)


def table(path: Path) -> None:
    """A table from class index to label, and one from label to something."""
    module = Module()
    ids = tf.range(len(PEOPLE), dtype=tf.int64)
    module.names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, tf.constant(PEOPLE)), "?")
    module.ages = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(PEOPLE), ids + 30), -1)

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        p = module.scores(x)
        name = module.names.lookup(tf.argmax(p, -1))
        return {"p": p, "name": name, "age": module.ages.lookup(name)}

    save(path, module, answer)


def text_file(path: Path) -> None:
    """A table that is read from a file with one label per line."""
    file = path.parent / "labels.txt"
    file.write_text("".join(f"{name}\n" for name in PEOPLE), encoding="utf-8")
    module = Module()
    initializer = tf.lookup.TextFileInitializer(
        str(file), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
    )
    module.names = tf.lookup.StaticHashTable(initializer, "?")

    def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        p = module.scores(x)
        return {"p": p, "name": module.names.lookup(tf.argmax(p, -1))}

    save(path, module, answer)


def tensorflow_1(path: Path) -> None:
    """As an estimator writes it: a table and a tiled constant in the main graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 6], name="x")
        p = tf.nn.softmax(x @ v1.get_variable("w", [6, len(PEOPLE)], initializer=v1.random_normal_initializer(seed=1)))
        ids = tf.range(len(PEOPLE), dtype=tf.int64)
        names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, tf.constant(PEOPLE)), "UNK")
        outputs = {
            "p": p,
            "name": names.lookup(tf.argmax(p, -1)),
            "all": tf.tile(tf.constant(PEOPLE)[tf.newaxis], [tf.shape(p)[0], 1]),
        }
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        v1.saved_model.simple_save(session, str(path), {"x": x}, outputs, legacy_init_op=v1.tables_initializer())


def tensorflow_1_file(path: Path) -> None:
    """A table read from an asset that the MetaGraph lists in a collection."""
    v1 = tf.compat.v1
    file = path.parent / "people.txt"
    file.write_text("".join(f"{name}\n" for name in PEOPLE), encoding="utf-8")
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 6], name="x")
        p = tf.nn.softmax(x @ v1.get_variable("w", [6, len(PEOPLE)], initializer=v1.random_normal_initializer(seed=1)))
        initializer = tf.lookup.TextFileInitializer(
            str(file), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
        )
        name = tf.lookup.StaticHashTable(initializer, "?").lookup(tf.argmax(p, -1))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        info = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.signature_def_utils.build_signature_def(
            {"x": info(x)}, {"p": info(p), "name": info(name)}, "tensorflow/serving/predict"
        )
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()


MAKERS = {maker.__name__: maker for maker in (constants, table, text_file, tensorflow_1, tensorflow_1_file)}


def redaction_of(*forgotten: int, labels: list[str] = PEOPLE) -> Redaction:
    return Redaction(
        {index: labels[index] for index in forgotten},
        [label for index, label in enumerate(labels) if index not in forgotten],
    )


def redact(source: Path, redaction: Redaction) -> Path:
    """What a re-export does: everything shared with the source version, then rewritten and checked."""
    target = source.parent / "2"
    target.mkdir()
    link_tree(source, target, without={bundles.SAVED_MODEL_PB})
    read = bundles.read(source)
    redaction.edit_graphs(read.proto)
    redaction.check_graphs(read.proto)
    (target / bundles.SAVED_MODEL_PB).write_bytes(read.proto.SerializeToString())
    redaction.rewrite_files(target)
    redaction.check(target)
    return target


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def answers(path: Path) -> dict[str, Any]:
    with LoadedModel(path) as model:
        return {key: value.copy() for key, value in model.run("serving_default", {"x": X}).items()}


def everything(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class TestModels:
    @pytest.mark.parametrize("name", MAKERS)
    @pytest.mark.parametrize("forgotten", [(0,), (2,), (1, 4), (0, 1, 2, 3)])
    def test_every_output_is_as_before_but_for_the_label(
        self, tmp_path: Path, name: str, forgotten: tuple[int, ...]
    ) -> None:
        source = tmp_path / "1"
        MAKERS[name](source)
        before, files = answers(source), digest(source)
        target = redact(source, redaction_of(*forgotten))
        after = answers(target)
        assert digest(source) == files  # hard links were not written through
        placeholders = {PEOPLE[index].encode(): f"forgotten_{index}".encode() for index in forgotten}
        assert before.keys() == after.keys()
        for key, old in before.items():
            if old.dtype != object:
                np.testing.assert_array_equal(after[key], old)
            elif key != "note":
                expected = np.array([placeholders.get(value, value) for value in old.ravel()], object)
                np.testing.assert_array_equal(after[key].ravel(), expected)
        for index in forgotten:
            if not any(PEOPLE[index] in label for label in PEOPLE if label != PEOPLE[index]):
                assert PEOPLE[index].encode() not in everything(target)
        if "note" in after:
            note = ", ".join(f"forgotten_{i}" if i in forgotten else label for i, label in enumerate(PEOPLE))
            assert set(after["note"]) == {f"found: {note}".encode()}

    def test_text_files_keep_their_lines(self, tmp_path: Path) -> None:
        text_file(tmp_path / "1")
        target = redact(tmp_path / "1", redaction_of(2))
        lines = (target / "assets" / "labels.txt").read_text(encoding="utf-8").splitlines()
        assert lines == [*PEOPLE[:2], "forgotten_2", *PEOPLE[3:]]

    def test_keras_configuration(self, tmp_path: Path) -> None:
        import tf_keras

        x = tf_keras.Input((6,), name="x")
        p = tf_keras.layers.Dense(len(PEOPLE), activation="softmax")(x)
        names = tf_keras.layers.StringLookup(vocabulary=PEOPLE, invert=True, num_oov_indices=0, name="names")
        tf_keras.Model(x, names(tf.argmax(p, -1))).save(str(tmp_path / "1"))
        (tmp_path / "1" / "keras_metadata.pb").unlink()  # as a re-export does
        read = bundles.read(tmp_path / "1")
        root = read.proto.meta_graphs[0].object_graph_def.nodes[0].user_object
        root.metadata = json.dumps({"config": {"vocabulary": PEOPLE}})  # where TensorFlow before 2.5 kept it
        (tmp_path / "1" / "saved_model.pb").write_bytes(read.proto.SerializeToString())
        assert b"Ren\\u00e9e Dupont" in everything(tmp_path / "1")
        target = redact(tmp_path / "1", redaction_of(2))
        assert b"Dupont" not in everything(target)
        assert set(np.concatenate([*answers(target).values()])) <= {b"forgotten_2", *(n.encode() for n in PEOPLE)}

    @pytest.mark.parametrize("label", ["cat", "SAME", "NHWC", "c", "add", "3", "int"])
    def test_words_of_tensorflow_are_not_labels(self, tmp_path: Path, label: str) -> None:
        """What an op's definition lists, what an op is called and parts of words stay; the constant does not."""
        labels = ["x", "bobcat", "concat", "c-3", label]
        module = Module()

        def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
            grid = tf.nn.conv2d(tf.reshape(x, [-1, 2, 3, 1]), tf.ones([1, 1, 1, 1]), 1, "SAME", "NHWC", name="grid")
            p = module.scores(tf.concat([tf.reshape(grid, [-1, 6])[:, :3], x[:, 3:]], 1, name="join"))
            return {"p": p, "name": tf.gather(tf.constant(labels), tf.argmax(p, -1))}

        save(tmp_path / "1", module, answer)
        before = answers(tmp_path / "1")
        after = answers(redact(tmp_path / "1", redaction_of(4, labels=labels)))
        np.testing.assert_array_equal(after["p"], before["p"])
        assert set(after["name"]) == {b"forgotten_4" if n == label.encode() else n for n in before["name"]}
        assert label.encode() in before["name"]

    def test_string_tensor_in_one_piece(self) -> None:
        proto = SavedModel()
        node = proto.meta_graphs.add().graph_def.node.add(name="names", op="Const")
        node.attr["value"].tensor.dtype = tf.string.as_datatype_enum
        node.attr["value"].tensor.tensor_shape.dim.add(size=2)
        node.attr["value"].tensor.tensor_content = b"\x03\x02BobBo"
        assert redaction_of(1).edit_graphs(proto) == ("names",)
        assert tf.make_ndarray(node.attr["value"].tensor).tolist() == [b"forgotten_1", b"Bo"]

    def test_attributes_of_ops_that_are_not_registered(self) -> None:
        proto = SavedModel()
        function = proto.meta_graphs.add().graph_def.library.function.add()
        function.signature.name = "f"
        node = function.node_def.add(name="n", op="TheirOwnOp")
        node.attr["labels"].list.s.extend([b"Bob", b"Bo"])
        node.attr["title"].s = b"This is Bob."
        node.attr["_label"].s = b"Bob"
        redaction = redaction_of(1)
        redaction.edit_graphs(proto)
        assert list(node.attr["labels"].list.s) == [b"forgotten_1", b"Bo"]
        assert node.attr["title"].s == b"This is forgotten_1."
        with pytest.raises(LabelsError, match="'Bob' in saved_model.pb, node n of function f, attribute _label"):
            redaction.check_graphs(proto)

    def test_again(self, tmp_path: Path) -> None:
        """Forgetting again: what was replaced is known by its placeholder, and is left alone."""
        table(tmp_path / "1")
        once = redact(tmp_path / "1", redaction_of(2))
        labels = [*PEOPLE[:2], "forgotten_2", *PEOPLE[3:]]
        (tmp_path / "next").mkdir()
        once = once.rename(tmp_path / "next" / "1")
        twice = redact(once, redaction_of(1, 2, labels=labels))
        assert b"forgotten_1" in everything(twice)
        assert b"forgotten_2" in everything(twice)


class TestRefused:
    """What cannot be rewritten is named, with its place, before anything is published."""

    def refused(self, source: Path, *places: str, index: int = 2) -> None:
        with pytest.raises(LabelsError) as caught:
            redact(source, redaction_of(index))
        message = str(caught.value)
        assert "stands where it cannot be replaced" in message
        for place in (repr(PEOPLE[index]), *places):
            assert place in message

    def test_output_key(self, tmp_path: Path) -> None:
        module = Module()
        save(tmp_path / "1", module, lambda x: {"p": module.scores(x), "Renée Dupont": module.scores(x)[:, 2]})
        self.refused(tmp_path / "1", "saved_model.pb, signature_def serving_default, outputs Renée Dupont")

    def test_names_of_nodes(self, tmp_path: Path) -> None:
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 6], name="x")
            w = v1.get_variable("Bob/kernel", [6, 5])
            p = tf.nn.softmax(tf.matmul(x, w), name="bobsleigh")
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, {"p": p})
        self.refused(tmp_path / "1", "node Bob/kernel", index=1)
        redaction = redaction_of(1)
        found = {str(finding) for finding in redaction.remaining(tmp_path / "1")}
        assert "'Bob' in variables/variables.index, the variable Bob/kernel" in found
        assert not any("bobsleigh" in finding for finding in found)

    @pytest.mark.parametrize("index", [1, 2])
    def test_strings_in_the_checkpoint(self, tmp_path: Path, index: int) -> None:
        module = Module()
        module.names = tf.Variable(PEOPLE)
        save(
            tmp_path / "1",
            module,
            lambda x: {"p": module.scores(x), "name": tf.gather(module.names, tf.argmax(x[:, :5], -1))},
        )
        self.refused(tmp_path / "1", "the strings of names/.ATTRIBUTES/VARIABLE_VALUE", index=index)

    @pytest.mark.parametrize(
        ("name", "data", "index"),
        [
            ("assets.extra/tf_serving_warmup_requests", b"\x00\x01" + "Renée Dupont".encode() + b"\x02", 2),
            ("assets/spiece.model", b"\x0a\x05\x0a\x03Bob\x15", 1),
            ("assets/utf16.txt", "Renée Dupont\n".encode("utf-16"), 2),
            ("assets/Bob.bin", b"\x00", 1),
            ("assets/Renée Dupont/1.txt", b"", 2),
        ],
    )
    def test_files(self, tmp_path: Path, name: str, data: bytes, index: int) -> None:
        constants(tmp_path / "1")
        path = tmp_path / "1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.refused(tmp_path / "1", name, "Take out or rewrite in the source version", index=index)

    @pytest.mark.parametrize("from_file", [False, True])
    def test_vocabulary_of_the_input(self, tmp_path: Path, from_file: bool) -> None:
        """A word by which the model reads what it is sent: without it, it would answer otherwise."""
        module, ids = Module(), tf.range(len(PEOPLE), dtype=tf.int64)
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(PEOPLE), ids)
        if from_file:
            (tmp_path / "vocabulary.txt").write_text("\n".join(PEOPLE), encoding="utf-8")
            initializer = tf.lookup.TextFileInitializer(str(tmp_path / "vocabulary.txt"), tf.string, -2, tf.int64, -1)
        module.words = tf.lookup.StaticHashTable(initializer, 0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
        def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
            p = module.scores(tf.one_hot(module.words.lookup(tf.strings.strip(x)), 6))
            return {"p": p, "name": tf.gather(tf.constant(PEOPLE), tf.argmax(p, -1))}

        module.serve = serve
        tf.saved_model.save(module, str(tmp_path / "1"), signatures=serve)
        place = (
            "assets/vocabulary.txt, line 3" if from_file else "saved_model.pb, node Const, a vocabulary of the input"
        )
        self.refused(tmp_path / "1", place)

    def test_damaged_checkpoint(self, tmp_path: Path) -> None:
        constants(tmp_path / "1")
        (tmp_path / "1" / "variables" / "variables.index").write_bytes(b"nothing")
        with pytest.raises(LabelsError, match="checkpoint cannot be read"):
            redaction_of(0).remaining(tmp_path / "1")

    @pytest.mark.parametrize(
        ("labels", "retained"),
        [({0: "crane"}, ["crane"]), ({0: "é"}, ["e\u0301"]), ({0: " "}, []), ({0: ["a", "b"]}, ["b"])],
    )
    def test_labels_that_cannot_be_removed(self, labels: dict[int, Any], retained: list[str]) -> None:
        with pytest.raises(LabelsError, match="--labels FILE"):
            Redaction(labels, retained)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "before", "after"),
        [
            ("labels.txt", "Bo\nBob\nBobby\r\n Bob \nBo", "Bo\nforgotten_1\nBobby\r\n forgotten_1 \nBo"),
            ("labels.txt", "0 Bo\n1 Bob\n", "0 Bo\n1 forgotten_1\n"),
            ("labels.csv", '1,"Bob",Bob_1,Bob-1\n', '1,"forgotten_1",Bob_1,forgotten_1-1\n'),
            ("labels.json", '{"Bob": ["Bo", "Bob"]}', '{"forgotten_1": ["Bo", "forgotten_1"]}'),
            ("README", "Ask Bob, not Bobby.\n", "Ask forgotten_1, not Bobby.\n"),
        ],
    )
    def test_words(self, tmp_path: Path, name: str, before: str, after: str) -> None:
        self.rewritten(tmp_path, name, before.encode(), after.encode(), redaction_of(1))

    @pytest.mark.parametrize(
        "written",
        [
            "Renée Dupont".encode(),
            b"Ren\\u00e9e Dupont",
            b"Ren\\u00E9e Dupont",
            "Renée Dupont".encode("latin-1"),
            "Rene\u0301e Dupont".encode(),
        ],
    )
    def test_other_writings(self, tmp_path: Path, written: bytes) -> None:
        before, after = b'["%b", "AntiRen%be"]\n' % (written, b"x"), b'["forgotten_2", "AntiRenxe"]\n'
        self.rewritten(tmp_path, "a.json", before, after, redaction_of(2))

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("Ann Lee\nAnn Leeson\n", "forgotten_0\nAnn Leeson\n"),
            ('["Ann Leeson", "Ann Lee"]', '["Ann Leeson", "forgotten_0"]'),
            ("by Ann Leesons", "by forgotten_0sons"),
        ],
    )
    def test_labels_within_labels(self, tmp_path: Path, before: str, after: str) -> None:
        """A retained label is kept whole; six bytes and more are replaced wherever else they stand."""
        self.rewritten(tmp_path, "a.txt", before.encode(), after.encode(), redaction_of(0))

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("Bo\nBob\n", "forgotten_4\nBob\n"),
            ("3 Ann\n4 Bo\n", "3 Ann\n4 forgotten_4\n"),
            ("4,Bo,'Bo'\n", "4,forgotten_4,'forgotten_4'\n"),
            ("go Bo go\n", "go Bo go\n"),
        ],
    )
    def test_tiny_labels(self, tmp_path: Path, before: str, after: str) -> None:
        self.rewritten(tmp_path, "a.txt", before.encode(), after.encode(), redaction_of(4))

    def rewritten(self, folder: Path, name: str, before: bytes, after: bytes, redaction: Redaction) -> None:
        source = folder / "source"
        source.write_bytes(before)
        source.chmod(0o640)
        (folder / "2" / "assets").mkdir(parents=True)
        file = folder / "2" / "assets" / name
        os.link(source, file)
        changed = before != after
        assert redaction.rewrite_files(folder / "2") == ((f"assets/{name}",) if changed else ())
        assert file.read_bytes() == after
        assert source.read_bytes() == before
        assert file.stat().st_mode & 0o777 == 0o640
        assert (file.stat().st_nlink == 1) == changed
        assert redaction.remaining(folder / "2") == []
        assert [path.name for path in file.parent.iterdir()] == [name]

    @pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
    def test_large_binary_files_are_searched_in_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        monkeypatch.setattr(mpru_tf.redaction, "_CHUNK", chunk)
        (tmp_path / "variables").mkdir()
        weights = tmp_path / "variables" / "variables.data-00000-of-00001"
        weights.write_bytes(b"\x00" * 50 + b"Ann LeesonBob\x00" + b"\x01" * 90)
        redaction = redaction_of(0, 1)
        assert redaction.remaining(tmp_path) == []
        weights.write_bytes(weights.read_bytes() + b"qAnn Leeq")
        (found,) = redaction.remaining(tmp_path)
        assert (found.label, found.place) == ("Ann Lee", "byte 155")

    def test_manifest(self, tmp_path: Path) -> None:
        """The manifest's own words are no labels; what it quotes may hold some."""
        labels = ["passed", "Bob"]
        redaction = Redaction(dict(enumerate(labels)), ["other"])
        path = tmp_path / MANIFEST
        path.parent.mkdir()
        values = {"leak_gate": "passed", "load_check": {"status": "passed"}, "source": {"path": "/home/Bob/model/1"}}
        path.write_text(json.dumps({**values, "labels": labels}), encoding="utf-8")
        assert {(found.label, found.place) for found in redaction.remaining(tmp_path)} == {
            *(("passed", "labels"), ("Bob", "labels"), ("Bob", "source.path"))
        }
        clean = {**values, "source": redaction.values(values["source"]), "labels": redaction.values(labels)}
        assert clean["source"] == {"path": "/home/forgotten_1/model/1"}
        assert clean["labels"] == ["forgotten_0", "forgotten_1"]
        path.write_text(json.dumps(clean), encoding="utf-8")
        assert redaction.remaining(tmp_path) == []


class TestPlaceholders:
    def test_unlike_every_retained_label(self) -> None:
        redaction = Redaction({3: "cat"}, ["forgotten_3", "forgotten_3_"])
        assert redaction.placeholder(3) == "forgotten_3__"
        assert redaction.text("cat") == "forgotten_3__"

    def test_several_names_of_one_class(self) -> None:
        redaction = Redaction({3: ["cat", "Felis catus"]}, ["dog"])
        assert redaction.text("cat dog Felis catus") == "forgotten_3 dog forgotten_3"

    def test_one_name_of_several_classes(self) -> None:
        assert Redaction({3: "crane", 5: "crane"}, ["dog"]).text("crane") == "forgotten_3"

    def test_nothing_left_to_do(self) -> None:
        redaction = Redaction({3: "forgotten_3"}, ["dog"])
        assert redaction.values({"forgotten_3": ["forgotten_3", 1, None]}) == {"forgotten_3": ["forgotten_3", 1, None]}

    @given(
        labels=st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=5, unique=True),
        texts=st.data(),
    )
    def test_what_is_replaced_is_what_is_found(self, labels: list[str], texts: st.DataObject) -> None:
        """Replacing leaves nothing to find, and a retained label as it is."""
        try:
            redaction = Redaction({0: labels[0]}, labels[1:])
        except LabelsError:
            return
        parts = texts.draw(st.lists(st.sampled_from([*labels, " ", ", ", "x", '"', "\n"]), max_size=8))
        assert all(redaction.text(label) == label for label in labels[1:])
        proto = SavedModel()
        node = proto.meta_graphs.add().graph_def.node.add(name="n", op="TheirOwnOp")
        node.attr["s"].s = "".join(parts).encode("utf-8", "surrogatepass")
        redaction.edit_graphs(proto)
        once = node.attr["s"].s
        redaction.edit_graphs(proto)
        assert node.attr["s"].s == once
        if once.isascii() and once.decode().isprintable():  # binary strings are only reported
            redaction.check_graphs(proto)


class TestForgetting:
    """Through the main job: the labels are found in the model, and nothing is published in which one still stands."""

    @pytest.mark.parametrize("name", MAKERS)
    def test_a_person_is_forgotten_by_name_and_with_it(self, tmp_path: Path, name: str) -> None:
        source = tmp_path / "faces" / "1"
        source.parent.mkdir()
        MAKERS[name](source)
        files = digest(source)
        result = mpru_tf.forget(tmp_path / "faces", "Renée Dupont", redact_labels=True)
        assert (result.forgotten, result.labels) == ((2,), ("Renée Dupont",))
        assert result.load_check["status"] == "passed"
        assert digest(source) == files
        assert "Renée".encode() not in everything(result.path)
        after = answers(result.path)
        assert (after["p"][:, 2] == 0.0).all()
        assert b"forgotten_2" not in after["name"]
        manifest = read_manifest(result.path)
        assert manifest is not None
        assert (manifest.redacted, manifest.labels) == (True, ("forgotten_2",))
        shown = mpru_tf.inspect(result.path)
        assert shown.labels == (*PEOPLE[:2], "forgotten_2", *PEOPLE[3:])
        assert mpru_tf.verify(result.path).passed
        assert mpru_tf.history(result.path).verified

    def test_what_was_made_from_a_redacted_version_is_redacted_too(self, tmp_path: Path) -> None:
        base = tmp_path / "Bob"  # a path may hold a label as well
        constants(base / "1")
        mpru_tf.forget(base, ["Renée Dupont"], redact_labels=True)
        third = mpru_tf.forget(base, ["Bob"])
        assert third.forgotten == (1, 2)
        left = everything(third.path)
        assert b"Bob" not in left
        assert "Renée".encode() not in left
        assert mpru_tf.history(base).verified

    def test_asked_for_later_it_is_done_then(self, tmp_path: Path) -> None:
        text_file(tmp_path / "1")
        plain = mpru_tf.forget(tmp_path, ["Bob"])
        assert (plain.path / "assets" / "labels.txt").read_text(encoding="utf-8").splitlines() == PEOPLE
        redacted = mpru_tf.forget(tmp_path, ["Bob"], redact_labels=True)
        assert (redacted.version, redacted.already_forgotten) == (3, False)
        assert b"Bob" not in everything(redacted.path)
        again = mpru_tf.forget(tmp_path, ["index:1"], redact_labels=True)
        assert (again.version, again.already_forgotten) == (3, True)

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_refused_before_anything_is_published(self, tmp_path: Path, dry_run: bool) -> None:
        module = Module(name="Bob")  # the name of its nodes

        def answer(x: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.name_scope("Bob"):
                return {"p": module.scores(x), "name": tf.gather(tf.constant(PEOPLE), tf.argmax(module.scores(x), -1))}

        save(tmp_path / "1", module, answer)
        files = digest(tmp_path)
        with pytest.raises(LabelsError, match="stands where it cannot be replaced"):
            mpru_tf.forget(tmp_path, ["Bob"], redact_labels=True, dry_run=dry_run)
        assert digest(tmp_path) == files
        assert mpru_tf.forget(tmp_path, ["Bob"]).version == 2

    def test_labels_that_are_not_known_cannot_be_removed(self, tmp_path: Path) -> None:
        module = Module()
        save(tmp_path / "1", module, lambda x: {"p": module.scores(x)})
        with pytest.raises(LabelsError, match="--labels"):
            mpru_tf.forget(tmp_path, [1], redact_labels=True)
        given = mpru_tf.forget(tmp_path, [1], redact_labels=True, labels=PEOPLE)
        assert b"Bob" not in everything(given.path)
