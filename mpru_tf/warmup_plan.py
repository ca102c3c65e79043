"""What becomes of the warm-up file of a version when its next one is written: kept, left out, or made anew.

==================  ==================================================================================================
``warmup``          what the new version gets
==================  ==================================================================================================
``keep``            the file of the version it is made from, if that has one: without requests for nothing but dropped
                    outputs, and without answers, should it hold any
``none``            no warm-up file
``auto``            requests made up from the signatures
a file of examples  requests made of them, for every signature that they fit (:mod:`mpru_tf.request_files`)
any other file      its records: a TFRecord file of ``PredictionLog`` messages, as request logs are
==================  ==================================================================================================

Each record is replayed before the version is published (:mod:`mpru_tf.warmup_replay`): a server that finds one bad
record does not load the version. Requests recorded from clients stay what they were, and are in the new version then.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import CorruptModelError, DataError, explain
from mpru_tf.request_files import SUFFIXES, RequestFile
from mpru_tf.warmup import MOST_RECORDS, WARMUP_FILE, read_warmup
from mpru_tf.warmup_replay import Replay
from mpru_tf.warmup_requests import at_most, in_batches, in_turn, kept, of_sizes, served

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

KEEP, NONE, AUTO, FILE = "keep", "none", "auto", "file"
_LEAVE_OUT = "Leave the file out with --warmup none, or make another with --warmup auto or --warmup FILE."


@dataclass(frozen=True)
class WarmUpWish:
    """What the caller of :func:`mpru_tf.forget` asked for.

    Attributes:
        mode: 'keep', 'none', 'auto' or 'file'.
        path: the file, of mode 'file'.
        sizes: batch sizes of the requests; None if none were named.
    """

    mode: str = KEEP
    path: Path | None = None
    sizes: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        warmup: str | os.PathLike[str],
        batch_sizes: Sequence[int] | int | str | os.PathLike[str] | None,
        replayed: bool,
    ) -> WarmUpWish:
        """Understand the two options of that name.

        Args:
            warmup: 'keep', 'none', 'auto', or the path of a file.
            batch_sizes: numbers, or numbers separated by commas, or the path of a batching parameters file: then 1
                and its allowed sizes.
            replayed: whether there is a load check, in which requests are replayed.

        Raises:
            DataError: there is no such file, or the options contradict each other.
            ServingError: the batching parameters cannot be read.
        """
        mode = warmup if isinstance(warmup, str) and warmup in (KEEP, NONE, AUTO) else FILE
        path = Path(warmup) if mode == FILE else None
        if path is not None and not path.is_file():
            raise DataError(
                explain(
                    "There is no such file of warm-up requests.",
                    received=path,
                    valid="keep, none, auto, or the path of a file with examples or recorded requests",
                )
            )
        sizes = None if batch_sizes is None else _sizes(batch_sizes)
        if sizes is not None and mode in (KEEP, NONE):
            raise DataError(
                explain(
                    "Batch sizes are for warm-up requests that are made.",
                    received=f"batch sizes with warmup {mode}",
                    valid="warmup auto or a file",
                )
            )
        if not replayed and mode in (AUTO, FILE):
            raise DataError(
                explain(
                    "Warm-up requests are replayed in the load check, which is to be left out.",
                    valid="the load check, or warmup keep or none",
                )
            )
        return cls(mode, path, sizes)

    def is_fulfilled(self, source: Path, said: Mapping[str, Any] | None) -> bool:
        """Whether a version has this already: nothing needs to be written for its sake.

        Args:
            source: the version directory.
            said: 'warmup' of its manifest.
        """
        if self.mode == NONE:
            return not (source / WARMUP_FILE).is_file()
        if self.mode == KEEP:
            return True
        return said is not None and all(said.get(name) == value for name, value in self._identity().items())

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path is not None else None
        sizes = list(self.sizes) if self.sizes is not None else None
        return {"mode": self.mode, "sha256": digest, "batch_sizes": sizes}


@dataclass(frozen=True)
class WarmUpPlan:
    """What was decided about the warm-up file.

    Attributes:
        mode: as :class:`WarmUpWish` has it.
        sizes: batch sizes of the requests that are still to be made up, of mode 'auto'.
        records: what to write; None if the source's file comes over as it is, or if nothing is written yet.
        numbers: of each record, its number in the file that it came from, from 1 on.
        expects: whether there will be records to replay.
        said: what the manifest says.
    """

    mode: str
    sizes: tuple[int, ...]
    records: tuple[bytes, ...] | None
    numbers: tuple[int, ...]
    expects: bool
    said: dict[str, Any]

    @property
    def left_out(self) -> frozenset[str]:
        """Files of the source version that do not come over."""
        return frozenset() if self.mode == KEEP and self.records is None else frozenset({WARMUP_FILE})

    @property
    def replay(self) -> Replay | None:
        """What the load check is to do; None if there will be no records."""
        return Replay(self.mode == AUTO, self.sizes, self.numbers) if self.expects else None

    def write(self, staging: Path) -> None:
        """Write the records, if there are any to write, into a staged version."""
        if self.records:
            from tensorflow_serving.apis import prediction_log_pb2

            from mpru_tf.warmup import write_warmup

            write_warmup(staging / WARMUP_FILE, map(prediction_log_pb2.PredictionLog.FromString, self.records))


def describe(said: Mapping[str, Any]) -> str:
    """What a manifest says about the warm-up file, in words."""
    if said["mode"] == NONE:
        return "no requests"
    origin = {KEEP: "kept", AUTO: "made up from the signatures"}.get(said["mode"], f"from {said['file']}")
    requests = f"{said['records']} request{'s' if said['records'] != 1 else ''}"
    words = [f"{requests} {origin}", "replayed" if said["replayed"] else "not replayed"]
    if said["left_out"]:
        words.append(f"{said['left_out']} left out that asked for nothing but dropped outputs")
    if said.get("not_asked"):
        words.append(f"none for {', '.join(said['not_asked'])}, which answers no made-up request")
    return ", ".join(words)


def plan_warm_up(
    wish: WarmUpWish, source: Path, signatures: Mapping[str, SignatureDef], dropped: Collection[str]
) -> WarmUpPlan:
    """Decide what the new version's warm-up file holds. The model is not run and nothing is written.

    Args:
        wish: what was asked for.
        source: the version directory that the new one is made from.
        signatures: those of the new version.
        dropped: outputs that it has no more, as SIG:KEY.

    Raises:
        DataError: the given file cannot be read or fits no signature, or asks for too much.
        CorruptModelError: the source's own warm-up file is damaged or too long.
    """
    if wish.mode == KEEP:
        return _keep(source, dropped)
    if wish.mode == NONE:
        return WarmUpPlan(NONE, (), None, (), False, _said(wish, 0))
    sizes = wish.sizes or (1,)
    if wish.mode == AUTO:
        return WarmUpPlan(AUTO, sizes, None, (), True, _said(wish, 0))
    assert wish.path is not None
    if wish.path.suffix in SUFFIXES:
        fitting = RequestFile(wish.path).fit(served(signatures))
        made = [in_batches(name, signatures[name], inputs, sizes) for name, inputs in fitting.items()]
        records = at_most(in_turn(*made), len(made) * len(sizes))
        numbers, left_out = tuple(range(1, len(records) + 1)), 0
    else:
        numbers, records, left_out = _recorded(wish, signatures, dropped)
    return WarmUpPlan(FILE, sizes, tuple(records), numbers, True, _said(wish, len(records), left_out))


def _said(wish: WarmUpWish, records: int, left_out: int = 0) -> dict[str, Any]:
    """What the manifest says, before the replay."""
    file = wish.path.name if wish.path is not None else None
    return {**wish._identity(), "file": file, "records": records, "left_out": left_out, "replayed": False}


# ------------------------------------------------------------------------------------------------------------- keeping
def _keep(source: Path, dropped: Collection[str]) -> WarmUpPlan:
    path, wish = source / WARMUP_FILE, WarmUpWish()
    if not path.is_file():
        return WarmUpPlan(KEEP, (), None, (), False, _said(wish, 0))
    count, changes = 0, False
    for log in _logs_of_source(path):
        count += 1
        changes = changes or kept(log, dropped) != log
    if not changes:
        return WarmUpPlan(KEEP, (), None, tuple(range(1, count + 1)), count > 0, _said(wish, count))
    left = [(number, kept(log, dropped)) for number, log in enumerate(_logs_of_source(path), 1)]
    numbers = tuple(number for number, log in left if log is not None)
    records = tuple(log.SerializeToString(deterministic=True) for _, log in left if log is not None)
    return WarmUpPlan(KEEP, (), records, numbers, bool(records), _said(wish, len(records), count - len(records)))


def _logs_of_source(path: Path) -> Iterator[Any]:
    number = 0
    try:
        for number, log in enumerate(read_warmup(path), 1):
            if number > MOST_RECORDS:
                raise CorruptModelError(
                    explain(
                        "The version's warm-up file has too many records: no server would load a version with it.",
                        valid=f"at most {MOST_RECORDS}",
                        hint=_LEAVE_OUT,
                    )
                )
            yield log
    except CorruptModelError as error:
        if error.__cause__ is None:
            raise
        raise CorruptModelError(
            explain(
                "The version's warm-up file is damaged: no server would load a version with it.",
                received=f"record {number + 1}: {error}".rstrip("."),
                valid="a TFRecord file of PredictionLog messages",
                hint=_LEAVE_OUT,
            )
        ) from error


# ---------------------------------------------------------------------------------------------------- recorded requests
def _recorded(
    wish: WarmUpWish, signatures: Mapping[str, SignatureDef], dropped: Collection[str]
) -> tuple[tuple[int, ...], list[bytes], int]:
    """Numbers and contents of the first thousand records of a request log, and how many were left out."""
    assert wish.path is not None
    logs, left_out = {}, 0
    try:
        for number, log in enumerate(itertools.islice(read_warmup(wish.path), MOST_RECORDS), 1):
            left = kept(log, dropped)
            if left is None:
                left_out += 1
            else:
                logs[number] = left
    except (CorruptModelError, OSError) as error:
        raise DataError(
            explain(
                f"The recorded requests cannot be read from {wish.path}.",
                received=f"record {len(logs) + left_out + 1}: {error}".rstrip("."),
                valid="an uncompressed TFRecord file of PredictionLog messages; or examples, in a file that ends in "
                + ", ".join(SUFFIXES),
            )
        ) from error
    # What was asked for by its size comes first, so as not to be crowded out.
    added = list(of_sizes(logs, signatures, wish.sizes or ()))
    whole = [*added, *logs.items()]
    records = at_most((log for _, log in whole), len(added))
    numbers = [number for number, _ in whole[: len(records)]]
    if not records:
        raise DataError(
            explain(
                "There are no requests in this file that the new version could be asked.",
                received=f"{wish.path}, {left_out} for dropped outputs alone",
            )
        )
    return tuple(numbers), records, left_out


# --------------------------------------------------------------------------------------------------------- batch sizes
def _sizes(given: Sequence[int] | int | str | os.PathLike[str]) -> tuple[int, ...]:
    if isinstance(given, int):
        given = (given,)
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        parts = [part.strip() for part in text.split(",")]
        numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
        given = numbers if len(numbers) == len(parts) else _allowed(text)
    sizes = tuple(dict.fromkeys(given))
    if not sizes or min(sizes) < 1:
        raise DataError(explain("A batch holds at least one example.", received=list(sizes), valid="1,8,32 or such"))
    return sizes


def _allowed(path: str) -> tuple[int, ...]:
    """1 and the sizes to which a server pads batches, of its batching parameters file."""
    from mpru_tf.serving.config import read_text_proto
    from mpru_tf.serving.messages import message_type

    parameters = read_text_proto(path, message_type("tensorflow.serving.BatchingParameters")())
    largest = [parameters.max_batch_size.value] if parameters.HasField("max_batch_size") else []
    return (1, *(parameters.allowed_batch_sizes or largest))
