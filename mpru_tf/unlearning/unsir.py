"""UNSIR: learn error-maximising noise for the classes to forget, impair with it, repair with what is retained."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, ModelError, explain
from mpru_tf.filters import check_forget_list
from mpru_tf.labels import parse_classes
from mpru_tf.unlearning.config import UnsirConfig
from mpru_tf.unlearning.copying import copied
from mpru_tf.unlearning.history import History, Row
from mpru_tf.unlearning.noise import Range, learn_noise
from mpru_tf.unlearning.scores import are_probabilities, bare_scores, count_classes
from mpru_tf.unlearning.training import Mixed, check_trainable, quick_statistics, seeded, train_epoch, trainer

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[Any]
Examples = tuple[npt.ArrayLike, npt.ArrayLike]

_PREDICT_BATCH = 500


@dataclass(frozen=True)
class Accuracy:
    """Shares of examples that are classified rightly.

    Attributes:
        retained: of the retained classes.
        forgotten: of the forgotten classes; None where there are no examples of them.
    """

    retained: float
    forgotten: float | None


@dataclass(frozen=True)
class UnsirResult:
    """What :func:`unsir` did.

    Attributes:
        model: the model that has forgotten: a copy, not compiled, or the one given with ``in_place``.
        forgotten: indices of the forgotten classes, ascending.
        classes: number n of classes.
        config: the settings.
        before: accuracy of the model as it was given.
        impaired: after impair.
        after: in the end.
        measured_on: 'validation', or 'retained' where only the retained examples that were trained on could be asked.
        steps: optimiser steps by phase: 'noise', 'impair', 'repair'.
        seconds: wall-clock time by phase, looks at the accuracy left out.
        history: one row per step.
        ended_early: ('impair',) if :attr:`UnsirConfig.retained_floor` ended it.
    """

    model: keras.Model = field(repr=False)
    forgotten: tuple[int, ...]
    classes: int
    config: UnsirConfig
    before: Accuracy
    impaired: Accuracy
    after: Accuracy
    measured_on: str
    steps: dict[str, int]
    seconds: dict[str, float]
    history: tuple[Row, ...] = field(repr=False)
    ended_early: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the model and the history."""
        left_out = ("model", "history")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        for name, value in values.items():
            if isinstance(value, Accuracy):
                values[name] = {"retained": value.retained, "forgotten": value.forgotten}
            elif isinstance(value, tuple):
                values[name] = list(value)
        return {**values, "config": self.config.to_dict()}


def unsir(
    model: keras.Model,
    classes: Sequence[str | SupportsIndex] | str | int,
    retained: Examples,
    config: UnsirConfig | None = None,
    *,
    labels: Sequence[str] | None = None,
    validation: Examples | None = None,
    in_place: bool = False,
    progress: bool = False,
    history_csv: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
) -> UnsirResult:
    """Make a Keras classifier forget classes by changing its weights.

    Three phases: a batch of noise is learned for each forgotten class that maximises the model's error on it; impair
    trains on noise, labelled with that class, mixed with retained examples; repair trains on retained examples. No
    example of a forgotten class is needed.

    This changes the file, and guarantees nothing about its answers: the forgotten classes keep their scores, and may
    still be predicted now and then. A filter on top of it (:func:`mpru_tf.forget`) answers exactly 0.

    Args:
        model: a built Keras 3 model from one float input [batch, ...] to class scores [batch, n], probabilities or
            logits.
        classes: indices in [0, n) or labels of the classes to forget, at least one, not all.
        retained: examples [N, ...] as the model takes them, and their classes int [N]; each retained class has at
            least one, no forgotten class has any.
        config: the settings. Default: the paper's.
        labels: one per class, to name classes by.
        validation: examples and classes that accuracies are taken on, forgotten classes included. Default: the
            retained examples that are trained on.
        in_place: change ``model`` itself. On any failure its weights are put back.
        progress: show bars on stderr.
        history_csv: file to write the history to.
        tensorboard: folder to write it to for TensorBoard.

    Returns:
        An :class:`UnsirResult`.

    Raises:
        ForgetListError: about ``classes``.
        DataError: about the examples.
        UnsupportedModelError: the model is no such classifier.
        ModelError: it has nothing to train, its loss or its answers are not finite, or it ends below the floor on
            retained accuracy.

    Source: Tarun, Chundawat, Mandal, Kankanhalli, 2021, arXiv 2111.08947. What is ours is in :class:`UnsirConfig`.
    """
    config = config or UnsirConfig()
    count = count_classes(model)
    specs = [classes] if isinstance(classes, str | SupportsIndex) else classes
    forgotten = check_forget_list(count, parse_classes(specs, labels, count))
    x, y = _retained(retained, model, count, forgotten)
    asked = _examples(validation, model, count, "validation") if validation is not None else None
    if asked is not None and np.isin(asked[1], forgotten).all():
        raise DataError(explain("The validation examples are all of forgotten classes.", valid="some that stay, too"))
    check_trainable(model)
    random = np.random.default_rng(config.seed)
    chosen = np.sort(
        np.concatenate([_pick(np.flatnonzero(y == c), config.retained_per_class, random) for c in np.unique(y)])
    )
    inputs, x, y = Range.of(x), x[chosen], y[chosen]
    with _untouched_on_failure(model, in_place) as working, History(history_csv, tensorboard, progress) as history:
        return _Run(working, forgotten, count, config, x, y, asked, inputs, random, history).run()


class _Run:
    """The three phases, told in order."""

    def __init__(
        self,
        model: keras.Model,
        forgotten: tuple[int, ...],
        classes: int,
        config: UnsirConfig,
        x: Array,
        y: Array,
        validation: tuple[Array, Array] | None,
        inputs: Range,
        random: np.random.Generator,
        history: History,
    ) -> None:
        self.model, self.forgotten, self.classes, self.config = model, forgotten, classes, config
        self.x, self.y, self.inputs, self.random, self.history = x, y, inputs, random, history
        self.asked = validation if validation is not None else (x, y)
        self.measured_on = "retained" if validation is None else "validation"
        self.seconds = {"noise": 0.0, "impair": 0.0, "repair": 0.0}
        self.ended_early: list[str] = []

    def run(self) -> UnsirResult:
        config = self.config
        answers = _answers(self.model, self.asked[0])
        if not np.isfinite(answers).all():
            raise ModelError(explain("The model answers numbers that are not finite.", received="NaN or infinity"))
        before = self._accuracy(answers)
        self._check_floor_can_hold(before)
        with ExitStack() as stack:
            scores = stack.enter_context(bare_scores(self.model, are_probabilities(answers)))
            stack.enter_context(quick_statistics(self.model))
            stack.enter_context(seeded(self.model, config.seed))
            noise = self._noise(scores)
            training = config.batch_norm == "train"
            shape = self.x.shape[1:]
            # Noise is seen again and again, beside each retained example once.
            mixed = Mixed(noise.reshape(-1, *shape), config.noise_batches, self.x)
            wanted = np.tile(np.repeat(np.asarray(self.forgotten), config.noise_batch), config.noise_batches)
            wanted = np.concatenate([wanted, self.y]).astype(np.int32)
            made = trainer(self.model, scores, shape, config.impair_learning_rate, training)
            self._phase("impair", made, mixed, wanted, config.impair_epochs)
            impaired = self._accuracy()
            made = trainer(self.model, scores, shape, config.repair_learning_rate, training)
            self._phase("repair", made, self.x, self.y, config.repair_epochs)
            answers = _answers(self.model, self.asked[0])
        if not np.isfinite(answers).all():
            raise ModelError(
                explain(
                    "The unlearned model answers numbers that are not finite; it was put aside.",
                    received="NaN or infinity",
                    hint="Lower the learning rates of impair and repair.",
                )
            )
        after = self._accuracy(answers)
        floor = config.retained_floor
        if floor is not None and after.retained < floor:
            raise ModelError(
                explain(
                    "The model classifies too few retained examples after repair; it was put aside.",
                    received=f"accuracy {after.retained:.4f}, {before.retained:.4f} before",
                    valid=f"{floor} or more",
                    hint="Give more retained examples, more repair epochs, or a lower impair_learning_rate.",
                )
            )
        return UnsirResult(
            model=self.model,
            forgotten=self.forgotten,
            classes=self.classes,
            config=config,
            before=before,
            impaired=impaired,
            after=after,
            measured_on=self.measured_on,
            steps={phase: self.history.steps(phase) for phase in self.seconds},
            seconds=self.seconds,
            history=self.history.rows,
            ended_early=tuple(self.ended_early),
        )

    def _noise(self, scores: Any) -> Array:
        config = self.config
        total = len(self.forgotten) * config.noise_rounds * config.noise_steps
        with self.history.phase("noise", total), self._timed("noise"):
            return learn_noise(
                scores,
                self.x.shape[1:],
                self.forgotten,
                config,
                self.inputs,
                on_step=lambda label, step, loss: self.history.add(loss, label=label),
            )

    def _phase(self, name: str, made: Any, x: Array | Mixed, y: Array, epochs: int) -> None:
        config = self.config
        total = epochs * max(1, round(len(x) / config.batch_size))
        looked = 0.0

        def on_step(loss: float) -> bool:
            nonlocal looked
            self.history.add(loss)
            floor = config.retained_floor
            # Repair brings everything back at first, also what was to be forgotten: it is never cut short.
            if name == "repair" or floor is None or self.history.steps(name) % config.look_every:
                return False
            started = time.perf_counter()
            accuracy = self._retained_accuracy()
            looked += time.perf_counter() - started
            return accuracy < floor

        with self.history.phase(name, total), self._timed(name):
            for _ in range(epochs):
                if train_epoch(made, x, y, config.batch_size, self.random, on_step):
                    self.ended_early.append(name)
                    break
        self.seconds[name] -= looked

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started

    def _accuracy(self, answers: Array | None = None) -> Accuracy:
        x, y = self.asked
        right = (_answers(self.model, x) if answers is None else answers).argmax(-1) == y
        gone = np.isin(y, self.forgotten)
        return Accuracy(float(right[~gone].mean()), float(right[gone].mean()) if gone.any() else None)

    def _retained_accuracy(self) -> float:
        x, y = self.asked
        stays = ~np.isin(y, self.forgotten)
        accuracy = float((_answers(self.model, x[stays]).argmax(-1) == y[stays]).mean())
        self.history.note(accuracy)
        return accuracy

    def _check_floor_can_hold(self, before: Accuracy) -> None:
        floor = self.config.retained_floor
        if floor is not None and before.retained < floor:
            raise ModelError(
                explain(
                    "The model is below the floor on retained accuracy already.",
                    received=f"accuracy {before.retained:.4f}",
                    valid=f"{floor} or more",
                    hint="Lower the floor, and see whether the examples are as the model takes them.",
                )
            )


# -------------------------------------------------------------------------------------------------- what was given
def _examples(given: Examples, model: keras.Model, count: int, name: str) -> tuple[Array, Array]:
    """Examples float32 [N, ...] and classes int [N], checked against the model."""
    x, y = (np.asarray(each) for each in given)
    if x.dtype.kind not in "fiu":
        raise DataError(explain(f"The {name} examples are no numbers.", received=x.dtype, valid="float32 or uint8"))
    y = y.reshape(-1)
    wanted = tuple(model.inputs[0].shape)[1:]
    shown = f"x {x.shape}, y {y.shape}"
    if not x.ndim or not len(x) or len(x) != len(y):
        raise DataError(
            explain(f"The {name} examples and classes do not belong together.", received=shown, valid="one class each")
        )
    if len(x.shape) - 1 != len(wanted) or any(b not in (None, a) for a, b in zip(x.shape[1:], wanted, strict=True)):
        raise DataError(
            explain(f"The {name} examples do not fit the model.", received=shown, valid=f"x [N, *{list(wanted)}]")
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= count:
        raise DataError(
            explain(
                f"The {name} classes are no classes of the model.",
                received=f"{y.dtype} from {y.min()} to {y.max()}",
                valid=f"indices 0 to {count - 1}",
            )
        )
    x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise DataError(explain(f"The {name} examples hold NaN or infinity.", valid="finite numbers"))
    return x, y.astype(np.int64)


def _retained(given: Examples, model: keras.Model, count: int, forgotten: Sequence[int]) -> tuple[Array, Array]:
    x, y = _examples(given, model, count, "retained")
    numbers = np.bincount(y, minlength=count)
    doubtful = [c for c in forgotten if numbers[c]]
    if doubtful:
        raise DataError(
            explain(
                "The retained data holds examples of classes to forget; repair would teach them again.",
                received=", ".join(f"{numbers[c]} of class {c}" for c in doubtful),
                valid="examples of the other classes only",
                hint="Leave them out of the file.",
            )
        )
    missing = [c for c in range(count) if not numbers[c] and c not in forgotten]
    if missing:
        raise DataError(
            explain(
                "Retained classes without examples would be forgotten along with the others.",
                received=f"no example of class{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}",
                valid="at least one example of each class that stays",
                hint="Classes that this model forgot earlier go into the list as well.",
            )
        )
    return x, y


def _pick(indices: Array, most: int, random: np.random.Generator) -> Array:
    return indices if len(indices) <= most else random.choice(indices, most, replace=False)


@contextmanager
def _untouched_on_failure(model: keras.Model, in_place: bool) -> Iterator[keras.Model]:
    """A copy to work on; or the model itself, whose weights are put back if anything fails."""
    if not in_place:
        yield copied(model)
        return
    kept = model.get_weights()
    try:
        yield model
    except BaseException:
        model.set_weights(kept)
        raise


def _answers(model: keras.Model, x: Array) -> Array:
    """The model's answers, float64 [N, n], asked for without a trace in its compiled functions."""
    import keras

    parts = [
        keras.ops.convert_to_numpy(keras.ops.cast(model(x[i : i + _PREDICT_BATCH], training=False), "float32"))
        for i in range(0, len(x), _PREDICT_BATCH)
    ]
    answers: Array = np.concatenate(parts).astype(np.float64)
    return answers
