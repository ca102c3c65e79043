"""A SavedModel on disk: read it, check that it is whole, write its protocol buffer back. Never runs it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError, explain
from mpru_tf.saved_model import structure
from mpru_tf.saved_model.graph import Graph

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

SAVED_MODEL_PB = "saved_model.pb"
SAVED_MODEL_PBTXT = "saved_model.pbtxt"
SAVED_MODEL_CPB = "saved_model.cpb"
SAVED_MODEL_FORMS = (SAVED_MODEL_PB, SAVED_MODEL_PBTXT, SAVED_MODEL_CPB)
"""The forms a SavedModel is stored in. Where several lie side by side, the first one here is what servers load."""

VARIABLES_INDEX = "variables/variables.index"
FINGERPRINT_PB = "fingerprint.pb"
KERAS_METADATA_PB = "keras_metadata.pb"

FILTER_PREFIX = "mpru_filter"
"""Every node of a filter of ours lies below a name that begins like this."""

_LARGEST_PROTO = 2**31 - 1  # protocol buffers cannot be larger, so neither can an honest saved_model.pb
_VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})
_SHARD = re.compile(r"variables\.data-(\d{5})-of-(\d{5})")


@dataclass
class Bundle:
    """A SavedModel read into memory.

    Attributes:
        directory: the version directory.
        proto: the SavedModel message; edited in place by a splice.
        sha256: hex digest of saved_model.pb (or saved_model.pbtxt) as it was read.
        names_filter: whether anything in it is called like the nodes of a filter of ours.
    """

    directory: Path
    proto: SavedModel
    sha256: str
    names_filter: bool

    def graphs(self) -> list[Graph]:
        """One :class:`Graph` per MetaGraphDef, seeing the proto as it is now; stale after an edit."""
        return [Graph(meta_graph, index) for index, meta_graph in enumerate(self.proto.meta_graphs)]

    @property
    def meta_graphs(self) -> list[MetaGraphDef]:
        return list(self.proto.meta_graphs)


def read(directory: Path) -> Bundle:
    """Read the SavedModel in a version directory and check that its files are all there.

    As TensorFlow's own loaders do, saved_model.pb is preferred over saved_model.pbtxt where both are there.

    Raises:
        ModelNotFoundError: there is neither in ``directory``, or it cannot be read.
        CorruptModelError: it cannot be parsed, its parts do not fit together, or files that it needs are missing.
        UnsupportedModelError: the SavedModel is stored in chunks.
    """
    path = next((directory / name for name in SAVED_MODEL_FORMS if _lies_there(directory / name)), None)
    if path is None:
        raise _no_saved_model(directory)
    if path.name == SAVED_MODEL_CPB:
        raise _in_chunks(path)
    data = _bytes_of(path)
    with damaged_as_error(directory):
        proto = _from_text(path, data) if path.name == SAVED_MODEL_PBTXT else _from_bytes(path, data)
        names_filter = FILTER_PREFIX.encode() in (data if path.name == SAVED_MODEL_PB else proto.SerializeToString())
        bundle = Bundle(directory, proto, hashlib.sha256(data).hexdigest(), names_filter)
        _check_meta_graphs(bundle)
        structure.check(proto, directory)
        _check_variables(bundle)
    return bundle


@contextlib.contextmanager
def damaged_as_error(directory: Path) -> Iterator[None]:
    """Turn whatever a damaged SavedModel makes Python or TensorFlow stumble over into a :class:`CorruptModelError`.

    The last net, for reading and planning alone: errors of ours, interrupts and failures to read or write a file pass
    through as they are.
    """
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        lines = str(error).strip().splitlines()
        said = _SAID.get(type(error), "its parts contradict each other")
        raise CorruptModelError(
            explain(
                f"The SavedModel in {directory} is damaged: {said}.",
                received=f"{type(error).__name__}{': ' + lines[0][:300].rstrip('.') if lines else ''}",
                valid="a SavedModel as an exporter wrote it",
                hint="Copy the version directory again, or export the model again. If TensorFlow Serving loads and "
                "answers it as it is, this is a mistake of mpru_tf: please report it.",
            )
        ) from error


_SAID: dict[type[Exception], str] = {
    RecursionError: "its functions, or the fields of its protocol buffers, are nested too deeply to be followed",
    MemoryError: "it asks for more memory than there is",
    OverflowError: "it holds a number that is too large",
    UnicodeDecodeError: "it holds a name that is not UTF-8",
    KeyError: "it names something that it does not hold",
    IndexError: "it counts on more inputs or outputs than there are",
}


def _is_damage(error: Exception) -> bool:
    """Whether damage to a SavedModel can show in this way; by name where that spares importing TensorFlow."""
    kinds = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError)
    if isinstance(error, (*kinds, TypeError, ValueError)):
        return True
    return any(cls.__module__.startswith(("google.protobuf", "tensorflow.")) for cls in type(error).__mro__)


def _lies_there(path: Path) -> bool:
    """Whether anything has this name, be it a directory or a dangling link."""
    return path.is_symlink() or path.exists()


def _bytes_of(path: Path) -> bytes:
    try:
        # A named pipe would keep whoever opens it waiting for ever.
        if path.exists() and not path.is_file():
            raise CorruptModelError(
                explain(
                    f"{path} is no file.",
                    received="a directory" if path.is_dir() else "a pipe, a socket or a device",
                    valid="a regular file, or a link to one",
                )
            )
        size = path.stat().st_size
        if size > _LARGEST_PROTO:
            raise CorruptModelError(
                explain(f"{path} is larger than any protocol buffer can be.", received=f"{size} bytes", valid="< 2 GiB")
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(
            explain(f"{path} cannot be read.", received=error.strerror, valid="a file that this user may read")
        ) from error


def _from_bytes(path: Path, data: bytes) -> SavedModel:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise _unparsed(path, f"{len(data)} bytes that do not parse") from error
    return proto


def _from_text(path: Path, data: bytes) -> SavedModel:
    from google.protobuf import text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    try:
        return text_format.Parse(data.decode("utf-8"), SavedModel())
    except UnicodeDecodeError as error:
        raise _unparsed(path, f"a byte that is not UTF-8 at position {error.start}") from error
    except text_format.ParseError as error:
        said = str(error).splitlines()[0][:300].rstrip(".")
        raise _unparsed(path, f"text that does not parse (line:column and reason: {said})") from error


def _unparsed(path: Path, received: str) -> CorruptModelError:
    return CorruptModelError(
        explain(
            f"{path} is not a SavedModel, or only a part of one.",
            received=received,
            valid=f"a complete {path.name}",
            hint="Copy the version directory again, or export the model again.",
        )
    )


def has_saved_model(directory: Path) -> bool:
    """Whether a SavedModel in any of its storage forms lies directly in ``directory``."""
    return any((directory / name).is_file() for name in SAVED_MODEL_FORMS)


def index_digest(directory: Path) -> str | None:
    """SHA-256 of variables.index (which holds a CRC32C of every tensor), or None for a model without variables."""
    index = directory / VARIABLES_INDEX
    return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None


def _no_saved_model(directory: Path) -> ModelNotFoundError:
    return ModelNotFoundError(
        explain(
            f"There is no {SAVED_MODEL_PB} in this directory.",
            received=str(directory),
            valid=f"a version directory, which holds a {SAVED_MODEL_PB}, or a base path with numbered ones",
        )
    )


def _in_chunks(path: Path) -> UnsupportedModelError:
    # TensorFlow 2.19: its C++ loader, and with it TensorFlow Serving, looks for .pb and .pbtxt alone, and
    # SaveOptions(experimental_image_format=True) says that it is disabled outside Google. The records are Riegeli's,
    # compressed with Brotli unless told otherwise; a reader for them could not be held against anything here.
    return UnsupportedModelError(
        explain(
            f"This SavedModel is stored in chunks ({SAVED_MODEL_CPB}), a form that no released TensorFlow writes and "
            "that the loader of TensorFlow Serving does not read, so it could not be served as it is either.",
            received=str(path),
            valid=f"a version directory with a {SAVED_MODEL_PB} or a {SAVED_MODEL_PBTXT}",
            hint="Save the model again without experimental_image_format (it must then be smaller than 2 GiB).",
        )
    )


def _check_meta_graphs(bundle: Bundle) -> None:
    if not bundle.proto.meta_graphs:
        raise CorruptModelError(
            explain(
                "The SavedModel holds no MetaGraph, so there is nothing to serve.",
                received=f"a SavedModel without content in {bundle.directory}",
                valid="at least one MetaGraph tagged 'serve'",
                hint="Copy the version directory again, or export the model again.",
            )
        )


def _check_variables(bundle: Bundle) -> None:
    """A server loads a model without its variables and then fails every request; here it is refused at once."""
    directory = bundle.directory
    index = directory / VARIABLES_INDEX
    if not index.is_file():
        if any(node.op in _VARIABLE_OPS for graph in bundle.meta_graphs for node in graph.graph_def.node):
            raise CorruptModelError(
                explain(
                    "The graph has variables, but their values are missing.",
                    received=f"no {VARIABLES_INDEX} in {directory}",
                    valid=f"{VARIABLES_INDEX} and variables/variables.data-* beside {SAVED_MODEL_PB}",
                    hint="Copy the whole version directory, or export the model again.",
                )
            )
        return
    shards = [match for path in index.parent.iterdir() if (match := _SHARD.fullmatch(path.name))]
    totals = {int(match[2]) for match in shards}
    complete = any({int(m[1]) for m in shards if int(m[2]) == total} == set(range(total)) for total in totals)
    if not complete:
        found = ", ".join(sorted(match[0] for match in shards)) or "none"
        raise CorruptModelError(
            explain(
                "The variables are incomplete: a data file that variables.index describes is missing.",
                received=found,
                valid="variables.data-00000-of-0000N to the last of N",
                hint="Copy the whole version directory, or export the model again.",
            )
        )
