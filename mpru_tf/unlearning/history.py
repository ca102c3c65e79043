"""What happened at each step: kept, shown as bars, and written as CSV or for TensorBoard on request."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mpru_tf.errors import PublishError, explain
from mpru_tf.unlearning.places import check_file, check_folder


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        phase: 'noise', 'impair' or 'repair'.
        step: its number in that phase, from 1.
        loss: before the step.
        label: the class that noise was learned for.
        retained_accuracy: after the step, where it was looked at.
    """

    phase: str
    step: int
    loss: float
    label: int | None = None
    retained_accuracy: float | None = None


class History:
    """Keeps rows; as a context, writes them in the end. What has happened is written on failures too.

    Raises:
        PublishError: nothing can be written there: at once where that can be seen, else in the end, unless the context
            ends with an error of its own.
    """

    def __init__(
        self, csv_file: str | os.PathLike[str] | None, tensorboard: str | os.PathLike[str] | None, progress: bool
    ) -> None:
        check_history_places(csv_file, tensorboard)
        self._rows: list[Row] = []
        self._csv, self._tensorboard, self._progress = csv_file, tensorboard, progress
        self._phase, self._bar = "", _nowhere

    @property
    def rows(self) -> tuple[Row, ...]:
        """All steps so far."""
        return tuple(self._rows)

    def steps(self, phase: str) -> int:
        """How many steps a phase has taken."""
        return sum(row.phase == phase for row in self._rows)

    def add(self, loss: float, label: int | None = None) -> None:
        """Note a step of the present phase."""
        self._rows.append(Row(self._phase, self.steps(self._phase) + 1, loss, label))
        self._bar(loss)

    def note(self, retained_accuracy: float) -> None:
        """Note what was found after the last step."""
        self._rows[-1] = replace(self._rows[-1], retained_accuracy=retained_accuracy)

    @contextmanager
    def phase(self, name: str, steps: int) -> Iterator[None]:
        """While it lasts, steps belong to this phase."""
        self._phase = name
        with ExitStack() as stack:
            if self._progress:
                self._bar = stack.enter_context(_bar(name, steps))
            try:
                yield
            finally:
                self._bar = _nowhere

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._csv is None and self._tensorboard is None:
            return  # TensorFlow need not be there, where Keras trains with something else
        import tensorflow as tf

        try:
            self._write()
        except (OSError, tf.errors.OpError) as failure:
            if kind is None:  # else, what failed first is what has to be told
                reason = (getattr(failure, "strerror", None) or str(failure)).splitlines()[0]
                raise PublishError(
                    explain("The history cannot be written; training was in vain.", received=reason)
                ) from failure

    def _write(self) -> None:
        if self._csv is not None:
            path = Path(self._csv)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="", encoding="utf-8") as file:
                names = [entry.name for entry in fields(Row)]
                writer = csv.writer(file)
                writer.writerow(names)
                writer.writerows([getattr(row, name) for name in names] for row in self._rows)
        if self._tensorboard is not None:
            self._write_events(Path(self._tensorboard))

    def _write_events(self, folder: Path) -> None:
        import tensorflow as tf

        # tf.summary.scalar wants TensorBoard itself, which TensorFlow 2.21 no longer brings; this writer does not.
        message = tf.compat.v1.Summary
        with tf.Graph().as_default():
            writer = tf.compat.v1.summary.FileWriter(str(folder))
        for row in self._rows:
            name = row.phase if row.label is None else f"{row.phase}/class_{row.label}"
            values = [message.Value(tag=f"{name}/loss", simple_value=row.loss)]
            if row.retained_accuracy is not None:
                values.append(message.Value(tag=f"{name}/retained_accuracy", simple_value=row.retained_accuracy))
            writer.add_summary(message(value=values), global_step=row.step)
        writer.close()


def check_history_places(csv_file: str | os.PathLike[str] | None, tensorboard: str | os.PathLike[str] | None) -> None:
    """See that a history can be written.

    Raises:
        PublishError: it cannot.
    """
    if csv_file is not None:
        check_file(csv_file, "the history")
    if tensorboard is not None:
        check_folder(tensorboard, "the history for TensorBoard")


def _nowhere(loss: float) -> None:
    """A step that nobody watches."""


@contextmanager
def _bar(name: str, steps: int) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mpru_tf.console import messages

    columns = (
        TextColumn(f"{name:<6}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=messages()) as shown:
        task = shown.add_task(name, total=steps, loss="")
        yield lambda loss: shown.update(task, advance=1, loss=f"loss {loss:.3f}")
