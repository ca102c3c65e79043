"""A SavedModel in a C++ Session: the loader and the executor that TensorFlow Serving uses.

The Python loader (``tf.saved_model.load``) rebuilds functions from the object graph and is laxer; what it accepts says
little about a server. :class:`LoadedModel` imports the MetaGraph, restores the variables, runs the initialisers and
then answers SignatureDefs, each through one compiled callable per set of outputs.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from mpru_tf.errors import (
    CorruptModelError,
    DataError,
    MissingExtraError,
    ModelNotFoundError,
    MPRUError,
    UnsupportedModelError,
    explain,
)

#: What TensorFlow's loader raises about files (OSError), graphs (ValueError, KeyError, TypeError), a missing tag set
#: (RuntimeError) and everything that its C++ side finds (OpError).
_LOAD_FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError, tf.errors.OpError)
_UNKNOWN_OP = re.compile(r"Op type not registered '([^']+)'")

#: Takes the inputs in the order of their sorted keys, returns the outputs in the order they were asked for.
Step = Callable[..., list[npt.NDArray[Any]]]


class LoadedModel:
    """One version directory, loaded, initialised and ready to answer its signatures.

    Safe to use from many threads at once: a Session runs steps concurrently and the GIL is released meanwhile.

    Attributes:
        path: the version directory.
        meta_graph: the loaded ``MetaGraphDef``.
        signatures: ``SignatureDef`` by signature key.

    Args:
        version_dir: directory that holds ``saved_model.pb``.
        tags: the tag set of the MetaGraph to load, exactly.
        threads: size of the intra-op and of the inter-op thread pool, one number for both or each; ``None`` or 0 leaves
            a size to TensorFlow.
        config: a ``ConfigProto`` with further settings; ``threads`` win over its own.

    Raises:
        ModelNotFoundError: ``version_dir`` is no directory, or has no ``saved_model.pb``.
        UnsupportedModelError: the graph uses an op that is not linked into this process.
        CorruptModelError: TensorFlow could not load it; the message ends with TensorFlow's own reason.

    Example:
        >>> with LoadedModel("/models/cats/1") as model:                              # doctest: +SKIP
        ...     model.run("serving_default", {"x": np.zeros([1, 8], np.float32)})["probabilities"]
    """

    def __init__(
        self,
        version_dir: str | Path,
        tags: Sequence[str] = ("serve",),
        threads: int | tuple[int, int] | None = None,
        config: Any = None,
    ) -> None:
        self.path = Path(version_dir)
        if not any((self.path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ModelNotFoundError(
                explain(
                    "There is no SavedModel here.",
                    received=self.path,
                    valid="a version directory that holds saved_model.pb",
                )
            )
        self._steps: dict[tuple[Any, ...], Step] = {}
        self._steps_lock = threading.Lock()
        self._closed = False
        try:
            try:
                self._load(tags, _session_config(threads, config))
            except _LOAD_FAILURES as error:
                if not _bring_op(str(error)):
                    raise
                self._session.close()
                self._load(tags, _session_config(threads, config))
        except _LOAD_FAILURES as error:
            self.close()
            raise _load_failure(self.path, error) from error
        self.signatures: dict[str, Any] = dict(self.meta_graph.signature_def)

    def _load(self, tags: Sequence[str], config: Any) -> None:
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        with self._graph.as_default(), _without_loader_chatter():
            self.meta_graph: Any = tf.compat.v1.saved_model.loader.load(self._session, list(tags), str(self.path))

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Answer one signature.

        Args:
            signature_name: key in :attr:`signatures`.
            inputs: one array per input key, in the signature's dtype; strings as ``bytes`` or ``object`` arrays. No
                value is cast: NumPy arrays of the right dtype are handed over as they are.
            outputs: the output keys wanted; ``None`` means all.

        Returns:
            One array per output key. Arrays may share memory with TensorFlow; copy before writing into one.

        Raises:
            UnsupportedModelError: no such signature, or one that does not name plain dense tensors.
            DataError: input keys, output keys or dtypes that the signature does not have.
            tf.errors.OpError: what the graph itself objects to (an input of the wrong shape, say).
        """
        if signature_name not in self.signatures:
            raise UnsupportedModelError(
                explain(
                    f"{self.path} has no such signature.",
                    received=repr(signature_name),
                    valid=", ".join(sorted(self.signatures)) or "none, the model has no signatures",
                )
            )
        signature = self.signatures[signature_name]
        keys = tuple(sorted(signature.inputs))
        if inputs.keys() != set(keys):
            raise DataError(
                explain(
                    f"These are not the inputs of signature {signature_name!r}.",
                    received=sorted(inputs),
                    valid=list(keys),
                )
            )
        wanted = tuple(sorted(signature.outputs)) if outputs is None else tuple(outputs)
        step = self.step(signature_name, wanted)
        feeds = [_as_array(key, inputs[key], signature.inputs[key].dtype) for key in keys]
        return dict(zip(wanted, step(*feeds), strict=True))

    def step(self, signature_name: str, outputs: tuple[str, ...]) -> Step:
        """Return the compiled callable of one signature and one choice of outputs, made on first use.

        It takes the inputs positionally, in the order of their *sorted* keys, and checks nothing: for callers, like
        the model server, that validate on their own. Raises as :meth:`run` does about keys.
        """
        key = (signature_name, outputs)
        return self._steps.get(key) or self._keep(key, lambda: self._make_step(signature_name, outputs))

    def joint_step(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Step:
        """Return the compiled callable from tensors to tensors, by name, made on first use.

        For callers that answer several signatures in one run. It checks nothing.
        """
        key = (feeds, fetches)
        return self._steps.get(key) or self._keep(key, lambda: self._bind(feeds, fetches))

    def close(self) -> None:
        """Free the Session and the memory of its variables. Steps still running finish first, or fail as cancelled."""
        if not self._closed:
            self._closed = True
            self._steps.clear()
            self._session.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, key: tuple[Any, ...], make: Callable[[], Step]) -> Step:
        with self._steps_lock:
            step = self._steps.get(key)
            if step is None:
                step = self._steps[key] = make()
        return step

    def _make_step(self, signature_name: str, outputs: tuple[str, ...]) -> Step:
        signature = self.signatures[signature_name]
        unknown = sorted(set(outputs) - set(signature.outputs))
        if unknown:
            raise DataError(
                explain(
                    f"These are not outputs of signature {signature_name!r}.",
                    received=unknown,
                    valid=sorted(signature.outputs),
                )
            )
        feeds = tuple(_dense_name(self.path, key, signature.inputs[key]) for key in sorted(signature.inputs))
        fetches = tuple(_dense_name(self.path, key, signature.outputs[key]) for key in outputs)
        return self._bind(feeds, fetches)

    def _bind(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Step:
        # A tensor cannot be fed and fetched in one step; a signature that echoes an input is answered from the feed.
        echoed = {i: feeds.index(name) for i, name in enumerate(fetches) if name in feeds}
        computed = list(dict.fromkeys(name for name in fetches if name not in feeds))
        if computed:
            # Session.make_callable(fetches, feed_list) goes through Session.run's Python feed handling on each call.
            # This one binds the C++ Session::MakeCallable; private, but the same since TensorFlow 1.8.
            options = config_pb2.CallableOptions(feed=feeds, fetch=computed)
            call = self._session._make_callable_from_options(options)
            if computed == list(fetches):
                return call  # type: ignore[no-any-return]

        def step(*values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
            results = dict(zip(computed, call(*values), strict=True)) if computed else {}
            return [values[echoed[i]] if i in echoed else results[name] for i, name in enumerate(fetches)]

        return step


def _session_config(threads: int | tuple[int, int] | None, given: Any) -> Any:
    intra, inter = threads if isinstance(threads, tuple) else (threads or 0, threads or 0)
    # Soft placement: a graph exported on a GPU machine names devices that this one may lack. Growth: during a hot swap
    # two versions live on one GPU, so the first must not reserve all of its memory.
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True, gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
    if given is not None:
        config.MergeFrom(given)
    config.intra_op_parallelism_threads = intra or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = inter or config.inter_op_parallelism_threads
    return config


def _dense_name(path: Path, key: str, info: Any) -> str:
    if info.WhichOneof("encoding") != "name":
        raise UnsupportedModelError(
            explain(
                f"{key!r} in a signature of {path} is a sparse or composite tensor.",
                received=info.WhichOneof("encoding"),
                valid="signatures whose inputs and outputs are plain dense tensors",
            )
        )
    return str(info.name)


def _as_array(key: str, value: npt.ArrayLike, dtype: int) -> npt.NDArray[Any]:
    array = np.asarray(value)
    expected = tf.as_dtype(dtype).base_dtype
    fits = array.dtype.kind in "SUO" if expected == tf.string else array.dtype == expected.as_numpy_dtype
    if not fits:
        raise DataError(explain(f"Input {key!r} has the wrong dtype.", received=array.dtype, valid=expected.name))
    return array


def _bring_op(reason: str) -> bool:
    """Import the package that brings the op which a load stopped at, if TensorFlow Serving has it built in as well."""
    unknown_op = _UNKNOWN_OP.search(reason)
    if unknown_op is None or not unknown_op.group(1).startswith("SimpleML"):
        return False
    from mpru_tf.trees.tfdf_backend import import_tfdf

    try:
        import_tfdf()
    except MissingExtraError:
        return False
    return True


def _load_failure(path: Path, error: Exception) -> MPRUError:
    reason = " ".join(str(error).split()) or type(error).__name__
    unknown_op = _UNKNOWN_OP.search(reason)
    if unknown_op:
        return UnsupportedModelError(
            explain(
                f"{path} needs the op {unknown_op.group(1)}, which is not part of TensorFlow.",
                hint="Import the package that brings its op library, then load the model again. TensorFlow Decision "
                "Forests (ops that begin with SimpleML) need only be installed: pip install 'mpru_tf[trees]'.",
            )
        )
    return CorruptModelError(
        explain(
            f"TensorFlow cannot load {path}.",
            valid="a complete version directory: saved_model.pb, variables/ and, where it has any, assets/",
            hint=f"TensorFlow says: {reason}",
        )
    )


def _is_not_chatter(record: logging.LogRecord) -> bool:
    return "is deprecated" not in str(record.msg) and "Restoring parameters from" not in str(record.msg)


@contextmanager
def _without_loader_chatter() -> Iterator[None]:
    """Drop two log lines: that the v1 loader is deprecated (it is the only way into a Session) and that it restores."""
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_not_chatter)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_chatter)
