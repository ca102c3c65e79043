"""Ask a SavedModel about calibration examples, in the C++ Session that TensorFlow Serving uses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf import examples
from mpru_tf.errors import DataError, UnsupportedModelError, explain

if TYPE_CHECKING:
    from mpru_tf.inspection import Inspection
    from mpru_tf.saved_model.session import LoadedModel

_KINDS = ("probabilities", "logits", "log_probabilities")  # outputs that means can be taken of, the best first


@dataclass(frozen=True)
class Answers:
    """What a model answers to calibration examples.

    Attributes:
        classes: number n of classes.
        logits: True if the scores are logits (or log probabilities), False if they are probabilities.
        source: which output of which model on which data, in words.
        batches: class scores ``[N, n]`` with labels int ``[N]`` or None, batch after batch; to be read once.
    """

    classes: int
    logits: bool
    source: str
    batches: Iterator[tuple[npt.NDArray[Any], Any]]


@contextmanager
def answers(
    model: str | os.PathLike[str],
    data: Any,
    *,
    signature: str | None = None,
    output: str | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Iterator[Answers]:
    """Load a model, and ask it about the examples while the caller reads the answers.

    Args and errors are those of :meth:`mpru_tf.class_means.ClassMeans.from_saved_model`.
    """
    from mpru_tf.inspection import inspect
    from mpru_tf.saved_model.session import LoadedModel

    if batch_size < 1:
        raise DataError(explain("A batch needs examples.", received=f"batch_size {batch_size}", valid="1 or more"))
    inspection = inspect(model)
    classes, signature_key, output_key, kind = pick_output(inspection, signature, output)
    with LoadedModel(inspection.path) as loaded:
        feed = Feed(loaded, signature_key, output_key, batch_size)
        batches, total = examples.batches(data, feed.keys, feed.batch_size)

        def asked() -> Iterator[tuple[npt.NDArray[Any], Any]]:
            with progress_bar(progress, total) as advance:
                for x, y in batches:
                    scores = feed.run(x)
                    yield scores, y
                    advance(len(scores))

        source = f"{signature_key}:{output_key} of {inspection.path.name} on {examples.describe(data)}"
        yield Answers(classes, kind != "probabilities", source, asked())


def pick_output(inspection: Inspection, signature: str | None, output: str | None) -> tuple[int, str, str, str]:
    """Return (classes, signature key, output key, kind) of the output that shows the class scores.

    Args:
        inspection: of the version.
        signature: signature key; None for the best one.
        output: output key, or ``SIGNATURE:KEY``; None likewise.

    Raises:
        UnsupportedModelError: the version is filtered, or no such output shows all class scores.
    """
    if inspection.forgotten:
        raise UnsupportedModelError(
            explain(
                f"{inspection.path} answers nothing about forgotten classes any more, so it has no means of them.",
                received=f"a version without classes {', '.join(map(str, inspection.forgotten))}",
                valid="the unfiltered version that it was made from",
            )
        )
    usable = {
        name: (site.classes, kind)
        for site in inspection.score_sites
        for name, kind in sorted(site.output_kinds.items())
        if kind in _KINDS
    }
    if not usable:
        raise UnsupportedModelError(
            explain(
                f"{inspection.path} has no output that answers class scores.",
                received=inspection.refusal or "outputs that are only derived from class scores",
                valid="an output that holds probabilities or logits",
            )
        )
    fitting = {
        name: found
        for name, found in usable.items()
        if (signature is None or name.startswith(f"{signature}:"))
        and (output is None or name == output or name.endswith(f":{output}"))
    }
    if not fitting:
        raise UnsupportedModelError(
            explain(
                "No such output answers class scores.",
                received=":".join(part for part in (signature, output) if part is not None),
                valid=", ".join(usable),
            )
        )
    name = min(
        fitting, key=lambda name: (_KINDS.index(fitting[name][1]), not name.startswith("serving_default:"), name)
    )
    # An output key may hold a colon and so may a signature key: the signatures are known.
    signature_key = max((key for key in inspection.signatures if name.startswith(f"{key}:")), key=len)
    return fitting[name][0], signature_key, name[len(signature_key) + 1 :], fitting[name][1]


class Feed:
    """Turns batches of examples into requests to one signature."""

    def __init__(self, loaded: LoadedModel, signature_key: str, output_key: str, batch_size: int) -> None:
        self.loaded = loaded
        self.signature_key = signature_key
        self.output_key = output_key
        self.infos = dict(loaded.signatures[signature_key].inputs)
        self.keys = tuple(sorted(self.infos))
        fixed = {
            info.tensor_shape.dim[0].size
            for info in self.infos.values()
            if info.tensor_shape.dim and info.tensor_shape.dim[0].size > 0
        }
        self.fixed = min(fixed) if fixed else None
        self.batch_size = self.fixed or batch_size

    def run(self, x: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Answer one batch, of at most :attr:`batch_size` examples; returns ``[N, n]``."""
        import tensorflow as tf

        count = len(next(iter(x.values())))
        inputs = {key: self.cast(key, x[key]) for key in self.keys}
        if self.fixed is not None and count < self.fixed:
            # The graph answers batches of one size only: repeat the last example, and drop its answers.
            last = np.minimum(np.arange(self.fixed), count - 1)
            inputs = {key: array[last] for key, array in inputs.items()}
        try:
            scores = self.loaded.run(self.signature_key, inputs, [self.output_key])[self.output_key]
        except tf.errors.OpError as error:
            raise DataError(
                explain(
                    "The model does not accept the data.",
                    received=", ".join(f"{key} {array.dtype} {array.shape}" for key, array in inputs.items()),
                    hint="TensorFlow says: " + " ".join(str(error.message).split())[:300],
                )
            ) from error
        if scores.ndim == 1 and count == 1:  # a model of single examples may not show the batch axis
            scores = scores[None, :]
        return scores[:count]

    def cast(self, key: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import tensorflow as tf

        info = self.infos[key]
        dtype = tf.as_dtype(info.dtype)
        sizes = [dim.size for dim in info.tensor_shape.dim]
        shape_fits = info.tensor_shape.unknown_rank or (
            array.ndim == len(sizes)
            and all(size < 0 or size == have for size, have in zip(sizes[1:], array.shape[1:], strict=True))
        )
        text = array.dtype.kind in "SUO"
        if not shape_fits or text != (dtype == tf.string):
            raise DataError(
                explain(
                    f"The data does not fit input {key!r} of signature {self.signature_key!r}.",
                    received=f"{array.dtype} {('N', *array.shape[1:])}",
                    valid=f"{dtype.name} {'of any shape' if info.tensor_shape.unknown_rank else ('N', *sizes[1:])}",
                )
            )
        return array if text else array.astype(dtype.as_numpy_dtype, copy=False)


@contextmanager
def progress_bar(shown: bool, total: int | None) -> Iterator[Any]:
    """Yield a function that is told how many more examples are done."""
    if not shown:
        yield lambda count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mpru_tf.console import messages

    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=messages()) as bar:
        task = bar.add_task("asking the model", total=total)
        yield lambda count: bar.advance(task, count)
