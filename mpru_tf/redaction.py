"""Remove the forgotten labels themselves (a person's name in a face model) from a new version directory.

A filter keeps the server from answering a class; its label still stands in the files: in the constants and tables that
turn class indices into words, in ``labels.txt``, in the manifest. Here each is replaced by a placeholder
(``forgotten_3``), and then every file is searched, so that nothing is published in which a label was overlooked.

What is looked for is each label as given and as it may be written: escaped in JSON (``Andr\\u00e9``) or CSV, composed
or decomposed, in Latin-1. Upper and lower case differ. One that stands within a label that is kept (``crane`` within
``crane, bird``) is left alone. How freely it is looked for depends on its length, because three bytes turn up by
chance in any file and ``cat`` is part of ``ConcatV2``:

================ ==================================================================================================
label            counts as found
================ ==================================================================================================
1 or 2 bytes, or as a whole: one string of a string tensor or an attribute, one line of a text file, one cell or quoted
up to 5 digits   string in it. Not in names, nor in binary files
3 to 5 bytes     as a word (letters, digits and ``_`` continue a word): in each string of saved_model.pb, in text files,
                 in names and strings of the checkpoint, in paths, and in other binary files of up to 1 MiB
6 bytes or more  wherever these bytes stand, in every file, weights and warm-up records included, and in UTF-16
================ ==================================================================================================

Strings, string attributes, Keras configurations and text files are rewritten. Names of nodes, functions, signatures,
variables and files, binary assets, warm-up records, strings in the checkpoint and vocabularies by which the model reads
its input (to change one would change its answers) are not: a label that stands there is reported, and the version is
refused. Not looked into: compressed or encrypted assets, and words that are TensorFlow's
own (names of its ops, of their attributes, and the values that an op's definition lists).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import LabelsError, explain
from mpru_tf.manifest import MANIFEST
from mpru_tf.saved_model.bundle import SAVED_MODEL_PB, VARIABLES_INDEX
from mpru_tf.saved_model.graph import Graph, op_def
from mpru_tf.saved_model.label_sources import input_vocabularies, string_elements

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from tensorflow.core.framework.attr_value_pb2 import AttrValue
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

_WORD_LENGTH, _LONG = 3, 6  # bytes; see the module's docstring
_LARGEST_TEXT = 64 << 20  # larger ones are taken for binary files: not rewritten, and searched as bytes
_SMALL_BINARY = 1 << 20
_CHUNK = 16 << 20
_MOST_SHOWN = 12  # places listed in one message
_DT_STRING = 7

_IN_WORD = rb"[0-9A-Za-z_\x80-\xff]"
_IN_CELL = rb"[^\r\n\t,;|\"']"
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")
# The strings that these ops read name tensors of the checkpoint, whose files stay as they are.
_CHECKPOINT_OPS = frozenset({"SaveV2", "RestoreV2", "Save", "SaveSlices", "Restore", "RestoreSlice"})
_SYNTAX_ATTRIBUTES = frozenset({"equation", "config", "config_proto", "executor_type"})
# Of the manifest, only our own words stand there.
_OWN_FIELDS = frozenset({"tool_version", "created", "method", "leak_gate", "status", "kind", "prefix"})


@dataclass(frozen=True)
class Finding:
    """One place where a forgotten label still stands.

    Attributes:
        path: the file, relative to the version directory.
        place: where in it, in words.
        label: the label.
    """

    path: str
    place: str
    label: str

    def __str__(self) -> str:
        return f"{self.label!r} in {self.path}, {self.place}" if self.place else f"{self.label!r} in {self.path}"


class Redaction:
    """What to replace by what, and where it may not be replaced.

    Args:
        labels: by index of each forgotten class its label; several where sources call it differently. One that is its
            own placeholder already (forgetting again) is passed over.
        retained: labels of the classes that are kept, of all sources.

    Raises:
        LabelsError: a label is empty, or a retained class has it too.
    """

    def __init__(self, labels: Mapping[int, str | Sequence[str]], retained: Sequence[str]) -> None:
        self._retained = frozenset(retained)
        self._kept = frozenset(form for label in self._retained for form in _forms(label))
        names = {index: (label,) if isinstance(label, str) else tuple(label) for index, label in labels.items()}
        every = sorted({label for several in names.values() for label in several})
        shared = [label for label in every if not self._kept.isdisjoint(_forms(label))]
        if shared or not all(map(str.strip, every)):
            raise LabelsError(
                explain(
                    "A label cannot be removed: a class that is kept has the same one."
                    if shared
                    else "A label to be removed is empty.",
                    received=", ".join(map(repr, shared)) or "''",
                    valid="labels that only forgotten classes have",
                    hint="Forget without --redact-labels, or give distinct labels with --labels FILE.",
                )
            )
        # Vocabularies of the input, which are not to be rewritten: asset files, and constants by scope and node.
        self._vocabularies: set[str] = set()
        self._vocabulary_nodes: set[tuple[str, str]] = set()
        self._placeholders: dict[bytes, bytes] = {}  # by form
        self._labels: dict[bytes, str] = {}  # by form
        for index, several in sorted(names.items()):
            for label in several:
                if label == self.placeholder(index):
                    continue
                for form in _forms(label):
                    self._placeholders.setdefault(form, self.placeholder(index).encode())
                    self._labels.setdefault(form, label)
        own = list(self._placeholders)
        found = _pattern(_bounded(own, short=True))
        around = {form for form in self._kept if found.search(form)}
        self._reach = max(map(len, around), default=0)
        self._raw_forms = [form for form in own if len(form) >= _LONG]
        self._anywhere = _pattern(map(re.escape, own))
        self._text = _pattern(_bounded([*own, *around], around, short=True))
        self._names = _pattern(_bounded([*own, *around], around, short=False))
        self._words = _pattern(_bounded([*{*own} - {*self._raw_forms}, *around], around, short=False))
        self._raw = _pattern(map(re.escape, _longest_first([*self._raw_forms, *around])))

    def placeholder(self, index: int) -> str:
        """What class ``index`` is called from now on. No retained class is called so."""
        name = f"forgotten_{index}"
        while name in self._retained:
            name += "_"
        return name

    def text(self, value: str) -> str:
        """A string with every forgotten label in it replaced."""
        return self._element(value.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def values(self, value: Any) -> Any:
        """The same for all strings within a part of the manifest, but for keys and for what are our own words."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: inner if key in _OWN_FIELDS else self.values(inner) for key, inner in value.items()}
        return type(value)(map(self.values, value)) if isinstance(value, list | tuple) else value

    # ----------------------------------------------------------------------------------------------------- replacing
    def edit_graphs(self, proto: SavedModel) -> tuple[str, ...]:
        """Replace the labels in the strings of a SavedModel. Edits in place.

        Names are left as they are; what stands in one is for :meth:`check_graphs` to refuse.

        Returns:
            The places rewritten, in words.
        """
        done: list[str] = []
        for meta_graph in proto.meta_graphs:
            library = meta_graph.graph_def.library
            vocabularies, files = input_vocabularies(Graph(meta_graph))
            self._vocabularies |= files
            self._vocabulary_nodes |= vocabularies
            bodies = [("", meta_graph.graph_def.node), *((f.signature.name, f.node_def) for f in library.function)]
            for (scope, nodes), holder in zip(bodies, (meta_graph.graph_def, *library.function), strict=True):
                if self._may_hold(holder):
                    fixed = {name for where, name in vocabularies if where == scope}
                    edited = self._edit_nodes(nodes, fixed)
                    done.extend(f"{scope}/{node.name}" if scope else node.name for node in edited)
            for name, signature in meta_graph.signature_def.items():
                if self._may_hold(signature):
                    defaults = [self._edit_tensor(tensor) for tensor in signature.defaults.values()]
                    done.extend([f"defaults of signature {name}"] if any(defaults) else [])
            for node in meta_graph.object_graph_def.nodes:
                if node.user_object.metadata and self._may_hold(node):
                    metadata = self.text(node.user_object.metadata)
                    if metadata != node.user_object.metadata:
                        node.user_object.metadata = metadata
                        done.append(f"configuration of {node.user_object.identifier}")
        return tuple(done)

    def rewrite_files(self, staging: Path) -> tuple[str, ...]:
        """Replace the labels in the text files of a staged version directory, assets above all.

        To be called after :meth:`edit_graphs`, which learns which assets are vocabularies of the input.

        A staged file may share its bytes with the source version: each is written anew and put in the old one's place.

        Returns:
            The files rewritten, relative to ``staging``. Their number of lines stays the same.

        Raises:
            OSError: a file cannot be read or written.
        """
        done = []
        for path, relative in _files(staging):
            if relative.startswith(("variables/", "saved_model.")) or relative in (MANIFEST, *self._vocabularies):
                continue
            if path.stat().st_size > _LARGEST_TEXT:
                continue
            data = path.read_bytes()
            if self._anywhere.search(data) is None or _BINARY.search(data):
                continue
            new = b"\n".join(self._line(line) for line in data.split(b"\n"))
            if new != data:
                _replace_file(path, new)
                done.append(relative)
        return tuple(done)

    def _may_hold(self, message: Message) -> bool:
        return self._anywhere.search(message.SerializeToString()) is not None

    def _element(self, value: bytes) -> bytes:
        """One string as a whole, or what stands in it, replaced; binary ones only as a whole."""
        bare = value.strip()
        if bare in self._placeholders:
            return self._placeholders[bare]
        if bare in self._kept or self._anywhere.search(value) is None or _BINARY.search(value):
            return value
        return self._text.sub(lambda match: self._placeholders.get(match[0], match[0]), value)

    def _line(self, line: bytes) -> bytes:
        """One line of a text file; unlike a string it keeps the blanks around a label."""
        new = self._element(line)
        return line.replace(line.strip(), new) if line.strip() in self._placeholders else new

    def _edit_nodes(self, nodes: Iterable[NodeDef], vocabularies: set[str]) -> Iterator[NodeDef]:
        every = list(nodes)
        fixed = vocabularies.union(
            reference.partition(":")[0] for node in every if node.op in _CHECKPOINT_OPS for reference in node.input
        )
        for node in every:
            if node.name not in fixed and self._may_hold(node):
                edited = [self._edit_attribute(value) for _, value in _own_attributes(node)]
                if any(edited):
                    yield node

    def _edit_attribute(self, value: AttrValue) -> bool:
        kind = value.WhichOneof("value")
        if kind == "tensor":
            return self._edit_tensor(value.tensor)
        if kind == "s":
            old, value.s = value.s, self._element(value.s)
            return bool(old != value.s)
        if kind == "list":
            edited = [self._edit_tensor(tensor) for tensor in value.list.tensor]
            strings = [self._element(string) for string in value.list.s]
            if strings != list(value.list.s):
                value.list.s[:] = strings
                edited.append(True)
            return any(edited)
        return False

    def _edit_tensor(self, tensor: TensorProto) -> bool:
        old = string_elements(tensor) if tensor.dtype == _DT_STRING else None
        new = [self._element(element) for element in old or ()]
        if old is None or new == old:
            return False
        tensor.tensor_content = b""
        tensor.string_val[:] = new
        return True

    # ----------------------------------------------------------------------------------------------------- verifying
    def check_graphs(self, proto: SavedModel) -> None:
        """Refuse a SavedModel in which a label still stands after :meth:`edit_graphs`.

        Raises:
            LabelsError: it lists the places.
        """
        _refuse(list(self._in_proto(proto)))

    def check(self, directory: Path) -> None:
        """Refuse a version directory in which a label still stands. To be called when all files are written.

        Raises:
            LabelsError: it lists the places.
        """
        _refuse(self.remaining(directory))

    def remaining(self, directory: Path) -> list[Finding]:
        """Every place in a version directory where a forgotten label stands, in the sense of the module's docstring.

        Memory is constant for weights and other binary files; saved_model.pb is parsed whole.
        """
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

        found: list[Finding] = []
        for path, relative in _files(directory):
            found.extend(self._named(relative, "the file's name", relative))
            if relative == SAVED_MODEL_PB:
                found.extend(self._in_proto(SavedModel.FromString(path.read_bytes())))
            elif relative == MANIFEST:
                found.extend(self._in_manifest(path, relative))
            else:
                found.extend(self._in_file(path, relative))
        found.extend(self._in_checkpoint(directory))
        return list(dict.fromkeys(found))

    def _named(self, path: str, place: str, name: str | bytes) -> Iterator[Finding]:
        """Labels within something that has a name of its own."""
        yield from self._matches(self._names, path, place, name.encode() if isinstance(name, str) else name)

    def _stringed(self, path: str, place: str, value: bytes) -> Iterator[Finding]:
        """Labels within a string, as :meth:`_element` would replace them, binary ones included."""
        bare = value.strip()
        if bare in self._placeholders:
            yield Finding(path, place, self._labels[bare])
        elif bare not in self._kept:
            yield from self._matches(self._names if _BINARY.search(value) else self._text, path, place, value)

    def _matches(self, pattern: re.Pattern[bytes], path: str, place: str, value: bytes) -> Iterator[Finding]:
        for match in pattern.finditer(value):
            if match[0] in self._placeholders:
                yield Finding(path, place, self._labels[match[0]])

    def _in_file(self, path: Path, relative: str) -> Iterator[Finding]:
        if relative.startswith("variables/"):
            yield from self._in_bytes(path, relative, [])
            return
        with open(path, "rb") as stream:
            head = stream.read(_SMALL_BINARY)
            size = path.stat().st_size
            if _BINARY.search(head) is None and size <= _LARGEST_TEXT:
                for number, line in enumerate((head + stream.read()).split(b"\n"), start=1):
                    yield from self._stringed(relative, f"line {number}", line)
                return
        if size <= _SMALL_BINARY:
            yield from self._matches(self._words, relative, "", head)
        yield from self._in_bytes(path, relative, self._utf16())

    def _utf16(self) -> list[tuple[bytes, str]]:
        labels = sorted({label for label in self._labels.values() if len(label) >= _WORD_LENGTH})
        return [(label.encode(code), label) for label in labels for code in ("utf-16-le", "utf-16-be")]

    def _in_bytes(self, path: Path, relative: str, more: Sequence[tuple[bytes, str]]) -> Iterator[Finding]:
        """Labels long enough, byte for byte."""
        wanted = [(form, self._labels[form]) for form in self._raw_forms]
        overlap = max((len(form) for form, _ in (*wanted, *more)), default=1) - 1
        reported: set[str] = set()
        start, tail = 0, b""
        with open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                data = tail + chunk
                for form, label in (*wanted, *more):
                    position = data.find(form)
                    while position >= 0 and label not in reported:
                        if (form, label) in more or self._is_free(path, start + position, form):
                            reported.add(label)
                            yield Finding(relative, f"byte {start + position}", label)
                        position = data.find(form, position + 1)
                tail = data[max(len(data) - overlap, 0) :]
                start += len(data) - len(tail)

    def _is_free(self, path: Path, position: int, form: bytes) -> bool:
        """Whether what stands at a position of a file is not part of a label that is kept."""
        if not self._reach:
            return True
        begin = max(0, position - self._reach)
        with open(path, "rb") as stream:
            stream.seek(begin)
            window = stream.read(position - begin + len(form) + self._reach)
        matches = (match for match in self._raw.finditer(window) if match.start() <= position - begin < match.end())
        return any(match[0] in self._placeholders for match in matches)

    def _in_manifest(self, path: Path, relative: str) -> Iterator[Finding]:
        def strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
            if isinstance(value, str):
                yield place, value
            elif isinstance(value, Mapping):
                for key, inner in value.items():
                    if key not in _OWN_FIELDS:
                        yield from strings(inner, f"{place}.{key}".lstrip("."))
            elif isinstance(value, list):
                for inner in value:
                    yield from strings(inner, place)

        for place, string in strings(json.loads(path.read_bytes()), ""):
            yield from self._stringed(relative, place, string.encode("utf-8", "surrogatepass"))

    def _in_checkpoint(self, directory: Path) -> Iterator[Finding]:
        """Names of the variables (which variables.index abbreviates) and string tensors. Nothing is executed."""
        if not (directory / VARIABLES_INDEX).is_file():
            return
        import tensorflow as tf

        try:
            reader = tf.train.load_checkpoint(str((directory / VARIABLES_INDEX).with_suffix("")))
            for name, dtype in sorted(reader.get_variable_to_dtype_map().items()):
                yield from self._named(VARIABLES_INDEX, f"the variable {name}", name)
                if dtype == tf.string:
                    value = reader.get_tensor(name)
                    for element in [value] if isinstance(value, bytes) else value.ravel().tolist():
                        yield from self._stringed("variables", f"the strings of {name}", element)
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise LabelsError(
                explain(
                    "The checkpoint cannot be read, so there is no telling whether a forgotten label stands in it.",
                    received=" ".join(str(error).split()),
                    hint="Forget without --redact-labels, or export the model again.",
                )
            ) from error

    # ----------------------------------------------------------------------------------------------- saved_model.pb
    def _in_proto(self, proto: SavedModel) -> Iterator[Finding]:
        for meta_graph in proto.meta_graphs:
            functions = {function.signature.name for function in meta_graph.graph_def.library.function}
            for place, value, is_string in self._strings(meta_graph, "", functions):
                look = self._stringed if is_string else self._named
                yield from look(SAVED_MODEL_PB, place, value)

    def _strings(self, message: Message, place: str, functions: set[str]) -> Iterator[tuple[str, bytes, bool]]:
        """Every string and map key in a message, with where it stands and whether it is data rather than a name."""
        if not self._may_hold(message):
            return
        kind = message.DESCRIPTOR.name
        if kind == "NodeDef":
            yield from self._strings_of_node(message, place, functions)
            return
        if kind == "FunctionDef":
            place = f"function {message.signature.name}"
        if kind == "TensorProto":
            for element in (string_elements(message) or []) if message.dtype == _DT_STRING else []:
                yield place, element, True
        for field, value in message.ListFields():
            if field.name in ("stripped_op_list", "string_val", "tensor_content"):
                continue
            where = f"{place}, {field.name}" if place else field.name
            inner = field.message_type
            if inner is not None and inner.GetOptions().map_entry:
                for key, entry in value.items():
                    if isinstance(key, str):
                        yield f"{where} {key}", key.encode(), False
                    if hasattr(entry, "DESCRIPTOR"):
                        yield from self._strings(entry, f"{where} {key}", functions)
                    elif isinstance(entry, str | bytes):
                        yield f"{where} {key}", entry.encode() if isinstance(entry, str) else entry, False
            elif inner is not None:
                for entry in (value,) if hasattr(value, "DESCRIPTOR") else value:
                    yield from self._strings(entry, where, functions)
            elif field.cpp_type == field.CPPTYPE_STRING:
                for entry in (value,) if isinstance(value, str | bytes) else value:
                    yield where, entry.encode() if isinstance(entry, str) else entry, field.name == "metadata"

    def _strings_of_node(self, node: Any, place: str, functions: set[str]) -> Iterator[tuple[str, bytes, bool]]:
        scope = place.removeprefix("function ").partition(",")[0] if place.startswith("function ") else ""
        where = f"node {node.name}" + (f" of function {scope}" if scope else "")
        if (scope, node.name) in self._vocabulary_nodes:
            where += ", a vocabulary of the input"
        yield where, node.name.encode(), False
        if node.op in functions:
            yield where, node.op.encode(), False
        yield where, node.device.encode(), False
        own = {name for name, _ in _own_attributes(node)}
        for name, value in node.attr.items():
            if name in own:
                for string in (value.s, *value.list.s):
                    yield f"{where}, attribute {name}", string, True
            elif name.startswith("_"):
                for string in (value.s, *value.list.s):
                    yield f"{where}, attribute {name}", string, False
            for part in (value.tensor, value.func, *value.list.tensor, *value.list.func):
                yield from self._strings(part, f"{where}, attribute {name}", functions)
        yield from self._strings(node.experimental_debug_info, where, functions)


# --------------------------------------------------------------------------------------------------------- what to find
def _forms(label: str) -> Iterator[bytes]:
    """The bytes that may stand for a label."""
    if label.isascii() and label.isprintable() and '"' not in label and "\\" not in label:
        yield label.encode()  # written alike everywhere; most labels are, and there may be 20,000
        return
    for text in dict.fromkeys((label, *(unicodedata.normalize(form, label) for form in ("NFC", "NFD")))):
        escaped = json.dumps(text)[1:-1]
        upper = re.sub(r"\\u[0-9a-f]{4}", lambda match: f"\\u{match[0][2:].upper()}", escaped)
        for written in (text, escaped, upper, json.dumps(text, ensure_ascii=False)[1:-1], text.replace('"', '""')):
            yield written.encode("utf-8", "surrogatepass")
        try:
            yield text.encode("latin-1")
        except UnicodeEncodeError:
            continue


def _is_tiny(form: bytes) -> bool:
    return len(form) < _WORD_LENGTH or (form.isdigit() and len(form) < _LONG)


def _longest_first(forms: Iterable[bytes]) -> list[bytes]:
    return sorted(set(forms), key=lambda form: (-len(form), form))


def _bounded(forms: Iterable[bytes], kept: Collection[bytes] = (), *, short: bool) -> Iterator[bytes]:
    """Patterns for forms where they count as found, longest first; ``short`` says whether tiny ones are wanted."""
    for form in _longest_first(forms):
        literal = re.escape(form)
        if form in kept or (not _is_tiny(form) and len(form) < _LONG):
            yield rb"(?<!%b)%b(?!%b)" % (_IN_WORD, literal, _IN_WORD)
        elif not _is_tiny(form):
            yield literal
        elif short:  # a cell, an item of a list ("b, c"), or a line as Teachable Machine writes it ("0 c")
            yield rb"(?:(?<!%b)|(?<=[0-9,;|] ))%b(?!%b)" % (_IN_CELL, literal, _IN_CELL)


def _pattern(alternatives: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(alternatives) or rb"(?!)")  # (?!) finds nothing


def _own_attributes(node: NodeDef) -> Iterator[tuple[str, AttrValue]]:
    """Attributes of a node that its author chose freely, neither an op's default nor one of the values it lists."""
    definition = op_def(node.op)
    defined = {attr.name: attr for attr in definition.attr} if definition is not None else {}
    for name, value in node.attr.items():
        attr = defined.get(name)
        listed = attr is not None and attr.HasField("allowed_values")
        default = attr is not None and attr.HasField("default_value") and attr.default_value == value
        if not (listed or default or name.startswith("_") or name in _SYNTAX_ATTRIBUTES):
            yield name, value


# ---------------------------------------------------------------------------------------------------------------- files
def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            yield path, path.relative_to(directory).as_posix()


def _replace_file(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".mpru-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        shutil.copymode(path, name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _refuse(findings: Sequence[Finding]) -> None:
    if not findings:
        return
    unique = list(dict.fromkeys(map(str, findings)))
    more = f"; and {len(unique) - _MOST_SHOWN} more" if len(unique) > _MOST_SHOWN else ""
    hints = ["Nothing was published."]
    paths = {finding.path for finding in findings}
    if SAVED_MODEL_PB in paths or any(path.startswith("variables") for path in paths):
        hints.append(
            "What is a name, or a word by which the model reads its input, would have to be called otherwise when the "
            "model is exported; or forget without --redact-labels."
        )
    files = sorted(path for path in paths if path != SAVED_MODEL_PB and not path.startswith("variables"))
    if files:
        hints.append(f"Take out or rewrite in the source version: {', '.join(files[:_MOST_SHOWN])}.")
    raise LabelsError(
        explain(
            "A forgotten label stands where it cannot be replaced.",
            received="; ".join(unique[:_MOST_SHOWN]) + more,
            valid="labels that stand only in strings, tables and text files, not in names, weights or binary files",
            hint=" ".join(hints),
        )
    )
