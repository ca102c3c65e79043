"""Does a SavedModel answer what the model's own library answers? Asked in a C++ Session, about telling rows.

XGBoost runs in a process of its own. Where it is not installed, or cannot be asked, the reference answers in its place
(:meth:`mpru_tf.trees.forest.Forest.probabilities`), and the result says so.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import ModelError, MPRUError, VerificationError, explain
from mpru_tf.trees.child import Child
from mpru_tf.trees.forest import Floats, Forest, link_probabilities
from mpru_tf.trees.telling_rows import telling_rows

if TYPE_CHECKING:
    from mpru_tf.saved_model.session import LoadedModel

LARGEST_DIFFERENCE = 1e-6
"""From the probabilities of whoever the model is compared with; a conversion that differs by more is refused."""

_ROWS = 4096  # that are compared, where they fit into _MOST_VALUES
_MOST_VALUES = 2**24  # float32 values in all rows together, 64 MiB
_FEW_VALUES = 2**12  # in those that are sent as tf.Example
_UNSETTLED = 1e-5  # a margin nearer to the step of binary:hinge may lie on either side of it


@dataclass(frozen=True)
class _Answers:
    """The margins float32 [rows, outputs] that somebody answers, who that is, and what is to be said about it."""

    who: str
    margins: Floats
    remark: str = ""


class Oracle:
    """Says what the answers to the rows have to be: XGBoost, or else the reference."""

    def __init__(self, forest: Forest, rows: Floats, child: Child | None) -> None:
        self.forest, self.rows, self._child = forest, rows, child
        self._answers: _Answers | None = None
        self._reference: Floats | None = None

    @property
    def reference(self) -> Floats:
        if self._reference is None:
            self._reference = self.forest.margins(self.rows)
        return self._reference

    @property
    def answers(self) -> _Answers:
        if self._answers is None:
            self._answers = self._asked()
        return self._answers

    def difference(self, probabilities: npt.NDArray[Any], margins: Floats) -> float:
        """The largest difference in probability from what these margins come to; infinite where one is NaN.

        Rows whose margins are infinite do not count: whose NaN is whose is nobody's concern there.
        """
        expected = link_probabilities(self.forest.link, margins)
        if probabilities.shape != expected.shape:
            return float("inf")
        with np.errstate(invalid="ignore"):  # infinite probabilities there are none, but a broken model could say so
            difference = np.abs(probabilities.astype(np.float64) - expected)
        difference[np.isnan(probabilities) & np.isnan(expected)] = 0
        difference[np.isnan(difference)] = np.inf
        difference = difference[np.isfinite(margins).all(axis=1)]
        if self.forest.link == "step":
            difference = difference[np.abs(margins[np.isfinite(margins[:, 0]), 0]) > _UNSETTLED]
        return float(difference.max(initial=0.0))

    def _asked(self) -> _Answers:
        if self._child is None:
            return self._by_reference("XGBoost is not installed")
        ended = self._child.wait()
        if ended:
            return self._by_reference(f"XGBoost could not be asked ({ended})")
        said = json.loads((self._child.folder / "said.json").read_text(encoding="utf-8"))
        margins = np.load(self._child.folder / "margins.npy")
        who = f"XGBoost {said['version']}"
        if margins.size != len(self.rows) * self.forest.outputs:
            return self._by_reference(f"{who} answers {list(margins.shape)} for {len(self.rows)} rows")
        margins = margins.reshape(len(self.rows), self.forest.outputs)
        is_older = _release(who) < _release(self.forest.origin)
        if is_older and self.difference(link_probabilities(self.forest.link, self.reference), margins) > (
            LARGEST_DIFFERENCE
        ):
            return self._by_reference(f"{who} is older than the file ({self.forest.origin}) and reads it otherwise")
        return _Answers(who, margins)

    def _by_reference(self, remark: str) -> _Answers:
        return _Answers("the reference", self.reference, remark)


def _release(origin: str) -> tuple[int, ...]:
    """``(3, 2)`` of 'XGBoost 3.2.0'; nothing where no version is told."""
    parts = origin.removeprefix("XGBoost").strip().split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


@contextlib.contextmanager
def oracle(
    forest: Forest, source: Path | bytes | bytearray, all_trees: bool, staging: Path, self_check: bool
) -> Iterator[Oracle | None]:
    """Set XGBoost to work, if it is there, while this process imports TensorFlow and writes."""
    if not self_check:
        yield None
        return
    rows = telling_rows(forest, min(_ROWS, max(1, _MOST_VALUES // max(forest.n_features, forest.outputs))))
    if importlib.util.find_spec("xgboost") is None:
        yield Oracle(forest, rows, None)
        return
    folder = staging / "xgboost"
    folder.mkdir()
    data = source.read_bytes() if isinstance(source, Path) else source
    # XGBoost goes by the name of a file, we by its content: JSON has a quote or a blank behind its first brace.
    is_json = bytes(data[:2])[1:2] in (b'"', b" ", b"\t", b"\r", b"\n") or data[:1] != b"{"
    (folder / f"model.{'json' if is_json else 'ubj'}").write_bytes(data)
    np.save(folder / "rows.npy", rows)
    with Child("answer_as_xgboost", folder, {"all_trees": all_trees}) as child:
        yield Oracle(forest, rows, child)


def compare(directories: Mapping[str, Path], oracle: Oracle | None) -> dict[str, dict[str, Any]]:
    """The self-check of each backend that passes it.

    Raises:
        VerificationError, ModelError: none does.
    """
    if oracle is None:
        return {name: {"status": "skipped", "detail": "not asked for"} for name in directories}
    passed: dict[str, dict[str, Any]] = {}
    refusal: MPRUError | None = None
    for backend, directory in directories.items():
        try:
            passed[backend] = _self_check(directory, oracle)
        except (VerificationError, ModelError) as error:
            refusal = refusal or error
    if not passed:
        assert refusal is not None
        raise refusal
    return passed


def _self_check(directory: Path, oracle: Oracle) -> dict[str, Any]:
    import tensorflow as tf

    from mpru_tf.saved_model.session import LoadedModel

    try:
        with LoadedModel(directory) as loaded:
            # A graph may answer single rows, few and many in different ways.
            parts = np.split(oracle.rows, [size for size in (1, 17, 300) if size < len(oracle.rows)])
            answered = np.concatenate(
                [loaded.run("serving_default", {"features": rows})["probabilities"] for rows in parts]
            )
            differing = _other_signatures(loaded, oracle, answered)
    except tf.errors.OpError as error:
        raise VerificationError(
            explain("The converted model fails a request; nothing was published.", received=error.message)
        ) from error
    if differing:
        raise VerificationError(
            explain(
                "A signature of the converted model answers otherwise than serving_default; nothing was published.",
                received=differing,
                hint="Please report this model.",
            )
        )
    answers = oracle.answers
    compared = (
        f"compared with {answers.who}" if not answers.remark else f"{answers.remark}: compared with {answers.who}"
    )
    difference = oracle.difference(answered, answers.margins)
    if not difference <= LARGEST_DIFFERENCE:
        said = f"{compared}, a difference of {difference:.3g} in probability"
        if not answers.remark:
            said += f"; compared with the reference, one of {oracle.difference(answered, oracle.reference):.3g}"
        raise VerificationError(
            explain(
                "The converted model answers otherwise than it must; nothing was published.",
                received=said,
                valid=f"at most {LARGEST_DIFFERENCE:g}",
                hint="Please report this model: it was read or converted wrongly.",
            )
        )
    rows = len(oracle.rows)
    return {
        "status": "passed",
        "detail": f"{compared}, largest difference {difference:.2g} on {rows} rows",
        "compared_with": answers.who,
        "rows": rows,
        "largest_difference": difference,
    }


def _other_signatures(loaded: LoadedModel, oracle: Oracle, expected: npt.NDArray[Any]) -> str:
    """The name of a signature that does not answer the same, or ''."""
    from mpru_tf.trees.export import feature_names, input_names

    forest, rows = oracle.forest, oracle.rows
    answers = {}
    if "named" in loaded.signatures:
        columns = dict(zip(input_names(forest), rows.T, strict=True))
        answers["named"] = loaded.run("named", columns)["probabilities"]
    if "classify" in loaded.signatures:
        few = rows[: max(1, _FEW_VALUES // forest.n_features)]
        examples = [_example(feature_names(forest), row) for row in few]
        answers["classify"] = loaded.run("classify", {"inputs": np.array(examples, object)})["scores"]
    for name, answer in answers.items():
        if not np.allclose(answer, expected[: len(answer)], rtol=0, atol=LARGEST_DIFFERENCE, equal_nan=True):
            return name
    return ""


def _example(names: Sequence[str], row: Floats) -> bytes:
    """A serialized tf.Example; a missing value is not in it."""
    import tensorflow as tf

    values = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        for name, value in zip(names, row.tolist(), strict=True)
        if value == value
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString())


def answer_as_xgboost(folder: Path, all_trees: bool) -> dict[str, Any]:
    """Margins by XGBoost itself. Rows go in as an array: codes are then codes, in all versions from 1.7 on."""
    xgboost = importlib.import_module("xgboost")
    booster = xgboost.Booster()
    booster.load_model(next(folder.glob("model.*")))
    best = None if all_trees else booster.attr("best_iteration")
    wanted = 0 if best is None else int(best) + 1
    used = wanted if 0 < wanted < booster.num_boosted_rounds() else 0  # 0: all of them
    margins = booster.inplace_predict(
        np.load(folder / "rows.npy"), iteration_range=(0, used), predict_type="margin", validate_features=False
    )
    np.save(folder / "margins.npy", margins)
    return {"version": str(xgboost.__version__)}
