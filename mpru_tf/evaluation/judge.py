"""The figures of one set of answers: against retraining, against the original, and by what attackers can tell."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError
from mpru_tf.evaluation import attacks, metrics
from mpru_tf.evaluation.asking import Examples, Floats

BINS = 20
"""Bars of a confidence histogram."""


class Judge:
    """Computes the figures of one set of answers after the other.

    Args:
        n: number of classes.
        forgotten: the forgotten ones.
        test, train: the examples.
        original: answers of the unfiltered model, float64 ``[N, n]``.
        reference: answers of the retrained model over the retained classes, if there is one.

    Attributes:
        gone, kept: bool ``[N]``, test examples of forgotten and of retained classes.
        nearest: by forgotten class, the retained class that its examples are told from, for all answers alike: the
            nearest by the reference or, without one, by the original.
    """

    def __init__(
        self,
        n: int,
        forgotten: tuple[int, ...],
        test: Examples,
        train: Examples | None,
        original: Floats,
        reference: Floats | None,
    ) -> None:
        self.n, self.forgotten, self.test, self.train = n, forgotten, test, train
        self.original, self.reference = original, reference
        self.gone = np.isin(test.y, forgotten)
        self.kept = ~self.gone
        retained = [c for c in range(n) if c not in forgotten]
        source = original if reference is None else reference
        self.nearest = {f: attacks.nearest_class(source, test.y, f, retained) for f in forgotten if (test.y == f).any()}

    def judge(self, p: Floats, p_train: Floats | None, curves: bool) -> dict[str, Any]:
        """The figures of answers ``p [N, n]`` and, on training examples, ``p_train``."""
        y, reference = self.test.y, self.reference
        destinations = metrics.destinations(p, y, self.n)[list(self.forgotten)]
        return {
            "accuracy_retained": metrics.accuracy(p[self.kept], y[self.kept]) if self.kept.any() else None,
            "accuracy_forgotten": metrics.accuracy(p[self.gone], y[self.gone]) if self.gone.any() else None,
            "calibration_error_retained": (
                metrics.calibration_error(p[self.kept], y[self.kept]) if self.kept.any() else None
            ),
            "zrf": self.randomness(p),
            "retained": None if reference is None else self.distance(p, reference, self.kept),
            "forgotten": None if reference is None else self.distance(p, reference, self.gone),
            "to_original": {
                "retained": self.distance(p, self.original, self.kept),
                "forgotten": self.distance(p, self.original, self.gone),
            },
            "destinations": destinations.tolist(),
            "class_kl": None if reference is None else metrics.class_kl(p, reference, y, self.n).tolist(),
            "membership": self.membership(p, p_train, forgotten=True, curves=curves),
            "membership_retained": self.membership(p, p_train, forgotten=False, curves=False),
            "nearest_class": self.nearest_class(p),
        }

    def distance(self, p: Floats, reference: Floats, rows: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
        """How far ``p`` is from a reference on some of the examples; None if there are none."""
        return metrics.distance(p[rows], reference[rows]).to_dict() if rows.any() else None

    def randomness(self, p: Floats) -> float | None:
        """The ZRF score on examples of forgotten classes; the model that learned nothing answers all classes alike."""
        rows = p[self.gone]
        return metrics.zrf(rows, np.full_like(rows, 1 / self.n)) if len(rows) else None

    def membership(self, p: Floats, p_train: Floats | None, *, forgotten: bool, curves: bool) -> dict[str, Any] | None:
        """Whether answers tell training examples (members) from test examples, of forgotten or of retained classes."""
        if p_train is None or self.train is None:
            return None
        outside = self.gone if forgotten else self.kept
        inside = np.isin(self.train.y, self.forgotten, invert=not forgotten)
        if not (inside.any() and outside.any()):
            return None
        members = attacks.signals(p_train[inside], self.train.y[inside], self.forgotten)
        others = attacks.signals(p[outside], self.test.y[outside], self.forgotten)
        found = {name: attacks.membership_inference(members[name], others[name]).to_dict() for name in members}
        if not curves:
            for one in found.values():
                del one["fpr"], one["tpr"]
        return found

    def nearest_class(self, p: Floats) -> dict[str, Any] | None:
        """For each forgotten class, whether its examples can be told from those of its nearest class."""
        retained = [c for c in range(self.n) if c not in self.forgotten]
        found: dict[str, Any] = {}
        for f, nearest in self.nearest.items():
            pair = np.isin(self.test.y, [f, nearest])
            with contextlib.suppress(DataError):  # too few examples of one of the two
                found[str(f)] = attacks.recognise(p[pair], self.test.y[pair], f, retained, nearest).to_dict()
        return found or None

    def histograms(self, p: Floats) -> dict[str, list[float] | None]:
        """Shares of the examples by their largest probability, in :data:`BINS` bars from 0 to 1."""

        def shares(rows: npt.NDArray[np.bool_]) -> list[float] | None:
            if not rows.any():
                return None
            counts, _ = np.histogram(np.minimum(p[rows].max(axis=1), 1.0), bins=BINS, range=(0.0, 1.0))
            return [float(share) for share in counts / rows.sum()]

        return {"retained": shares(self.kept), "forgotten": shares(self.gone)}
