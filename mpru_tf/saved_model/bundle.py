"""A SavedModel on disk: read it, check that it is whole, write its protocol buffer back. Never runs it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError, explain
from mpru_tf.saved_model.graph import Graph

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

SAVED_MODEL_PB = "saved_model.pb"
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
        sha256: hex digest of saved_model.pb as it was read.
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

    Raises:
        ModelNotFoundError: there is no saved_model.pb in ``directory``.
        CorruptModelError: saved_model.pb cannot be parsed, or variables that the graph needs are missing.
        UnsupportedModelError: the SavedModel is stored in a form that is not read here (text, chunked).
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = directory / SAVED_MODEL_PB
    if not path.is_file():
        raise _no_saved_model(directory)
    try:
        size = path.stat().st_size
        if size > _LARGEST_PROTO:
            raise CorruptModelError(
                explain(f"{path} is larger than any protocol buffer can be.", received=f"{size} bytes", valid="< 2 GiB")
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(
            explain(f"{path} cannot be read.", received=error.strerror, valid="a file that this user may read")
        ) from error
    proto = SavedModel()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise CorruptModelError(
            explain(
                f"{path} is not a SavedModel, or only a part of one.",
                received=f"{len(data)} bytes that do not parse",
                valid="a complete saved_model.pb",
                hint="Copy the version directory again, or export the model again.",
            )
        ) from error
    bundle = Bundle(directory, proto, hashlib.sha256(data).hexdigest(), FILTER_PREFIX.encode() in data)
    _check_meta_graphs(bundle)
    _check_variables(bundle)
    return bundle


def has_saved_model(directory: Path) -> bool:
    """Whether a SavedModel in any of its storage forms lies directly in ``directory``."""
    return any((directory / name).is_file() for name in (SAVED_MODEL_PB, "saved_model.pbtxt", "saved_model.cpb"))


def index_digest(directory: Path) -> str | None:
    """SHA-256 of variables.index (which holds a CRC32C of every tensor), or None for a model without variables."""
    index = directory / VARIABLES_INDEX
    return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None


def _no_saved_model(directory: Path) -> ModelNotFoundError | UnsupportedModelError:
    for name, form in (("saved_model.pbtxt", "text"), ("saved_model.cpb", "chunked")):
        if (directory / name).is_file():
            return UnsupportedModelError(
                explain(
                    f"This SavedModel is stored in {form} form, which is not read yet.",
                    received=str(directory / name),
                    valid=f"a version directory with a {SAVED_MODEL_PB}",
                    hint="Save the model again in binary form.",
                )
            )
    return ModelNotFoundError(
        explain(
            f"There is no {SAVED_MODEL_PB} in this directory.",
            received=str(directory),
            valid=f"a version directory, which holds a {SAVED_MODEL_PB}, or a base path with numbered ones",
        )
    )


def _check_meta_graphs(bundle: Bundle) -> None:
    if not bundle.proto.meta_graphs:
        raise CorruptModelError(
            explain(
                "The SavedModel holds no MetaGraph, so there is nothing to serve.",
                received=f"{bundle.directory / SAVED_MODEL_PB} without content",
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
