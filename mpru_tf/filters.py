"""The output filter in a few lines of NumPy: the reference that every other path is tested against.

``p`` holds class probabilities over ``n`` classes in its last axis, ``F`` are the forgotten classes (``k`` of
them), ``R`` the retained ones. Every filter returns ``q`` of the shape of ``p``, with ``q_F = 0`` exactly,
``q >= 0`` and ``sum(q) = 1``. Below, ``w = p_R / sum(p_R)`` and ``mu_c`` is the mean of ``p`` over examples of
class ``c`` (see :mod:`mpru_tf.class_means`).

============  ========================  ========================================================================
method        needs                     rule
============  ========================  ========================================================================
renormalize   nothing                   ``q_R = w``
mean          ``mu_f``, f in F          take the span of ``U = [mu_f]`` out of ``p``, spread what is missing by ``w``
gram_schmidt  ``mu_c`` of all classes   the same with ``B``, an orthonormal basis of what the retained means leave free
tempered      nothing                   ``q_R`` proportional to ``p_R^(1/t)``, ``t = 1 + (T - 1) sum(p_F)``
============  ========================  ========================================================================

A multi-label model answers one independent probability per class, which form no distribution: there is nothing to
redistribute. Its one method is ``mask``: ``q_R = p_R``, ``q_F = 0``, and in logits (before a Sigmoid)
:data:`FORGOTTEN_LOGIT` at the forgotten entries. What is said below about sums and odd rows is not about it.

Source: the idea of projecting an output vector off a forgotten class's average output and of redistributing the
removed probability by the original proportions is MPRU (Peng, Gunamardi, Tjuawinata, Lam, 2025, arXiv
2510.26230). The formulas are our own formalisation of it; ``tempered`` and the rules for degenerate rows are ours.

Rules for rows that are not ordinary (the same in :mod:`mpru_tf.layer`):

* An entry below :data:`UNDERFLOW` counts as 0 in every dtype (kernels flush denormals, NumPy does not).
* No retained probability left: the row becomes the average destination of the forgotten classes, mixed by
  ``p_F``, where class means are known, else uniform over R.
* A NaN, or an infinity where none can be, anywhere in a row makes the retained entries of that row NaN. The
  forgotten entries are 0 even there.

Logits go in and come out as logits (:meth:`FilterSpec.logits`): the softmax of the result is ``q``, and forgotten
entries are :data:`FORGOTTEN_LOGIT`, which is finite because JSON cannot carry an infinity.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import ClassMeansError, DataError, ForgetListError, MPRUError, explain

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans

Array = npt.NDArray[np.float64]

METHODS = ("renormalize", "mean", "gram_schmidt", "tempered")
"""For models whose probabilities sum to one."""
MASK = "mask"
"""The method for multi-label models."""
DEFAULT_METHOD = "tempered"
DEFAULT_TEMPERATURE = 1.5
MAX_TEMPERATURE = 1000.0

UNDERFLOW = float(np.finfo(np.float32).tiny)
"""Probabilities below this count as zero, in every dtype, so that every path agrees."""

FORGOTTEN_LOGIT: Mapping[str, float] = {"float16": -3e4, "bfloat16": -1e30, "float32": -1e30, "float64": -1e30}
"""The finite stand-in for minus infinity, by dtype name."""

LOGIT_FLOOR = -1e30
"""Logits below this are computed with as if they were this, so that minus infinity never meets itself."""

MIX_FLOOR = 1e-30
"""Added to ``p_F`` before it mixes fallback rows: a row of zeros then mixes them evenly, any other is unmoved."""


# ---------------------------------------------------------------------------------------------------------------
# Probabilities: one pure function per method


def renormalize(p: npt.ArrayLike, forgotten: Sequence[int], *, fallback: npt.ArrayLike | None = None) -> Array:
    """Return ``q_R = p_R / sum(p_R)``: exact for a calibrated classifier, and the baseline of every comparison.

    Args:
        p: ``[..., n]`` probabilities.
        forgotten: ``k`` distinct class indices, ``0 < k < n``.
        fallback: ``[k, n]``, for each forgotten class the distribution over R that replaces a row without
            retained probability; None for uniform.

    Returns:
        ``[..., n]`` float64, non-negative, rows sum to 1, exactly 0 on the forgotten classes.

    Raises:
        DataError: ``p`` is not an array of numbers ``[..., n]``.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.

    Example:
        >>> renormalize([0.2, 0.2, 0.6], [2])
        array([0.5, 0.5, 0. ])
    """
    rows = _Rows(p, forgotten)
    return rows.settle(rows.w, fallback)


def mean(p: npt.ArrayLike, forgotten: Sequence[int], means_f: npt.ArrayLike) -> Array:
    """Project off the means of the forgotten classes, then redistribute by the original proportions.

    ``y = p - U (U'U)^-1 U' p`` with ``U = [mu_f]``; ``q_R = max(0, y_R + (1 - sum(y_R)) w)``, divided by its sum.
    In closed form ``q = w + sum_f A_f s_f (w - m_f)`` with ``A = p U (U'U)^-1``, ``s_f = sum(mu_f[R])`` and
    ``m_f = mu_f[R] / s_f``. All forgotten classes are projected off jointly: one after another depends on their
    order. One-hot means give :func:`renormalize`. Our formalisation.

    Args:
        p: ``[..., n]`` probabilities.
        forgotten: ``k`` distinct class indices, ``0 < k < n``.
        means_f: ``[k, n]``, row ``i`` is the class mean of ``forgotten[i]``.

    Returns:
        ``[..., n]`` float64, non-negative, rows sum to 1, exactly 0 on the forgotten classes.

    Raises:
        DataError: ``p`` is not an array of numbers ``[..., n]``.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: ``means_f`` has another shape.
    """
    rows = _Rows(p, forgotten)
    means = _matrix(means_f, (len(rows.forgotten), rows.classes), "means of the forgotten classes")
    coefficients, directions = _mean_constants(means)
    q = _project(rows.w, rows.p, rows.keep, coefficients, directions)
    return rows.settle(q, destinations(means, rows.forgotten))


def gram_schmidt(p: npt.ArrayLike, forgotten: Sequence[int], means: npt.ArrayLike) -> Array:
    """Project off what only the forgotten classes' means span, then redistribute by the original proportions.

    ``B`` = the last ``k`` columns of Q in the QR decomposition of ``[U_R, U_F]``; ``y = p - B B' p``; then as in
    :func:`mean`. The projection leaves every retained class mean where it is, so those are merely renormalised.
    Our formalisation; the method that this project calls MPRU.

    Args:
        p: ``[..., n]`` probabilities.
        forgotten: ``k`` distinct class indices, ``0 < k < n``.
        means: ``[n, n]``, row ``c`` is the class mean of class ``c``.

    Returns:
        ``[..., n]`` float64, non-negative, rows sum to 1, exactly 0 on the forgotten classes.

    Raises:
        DataError: ``p`` is not an array of numbers ``[..., n]``.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: ``means`` has another shape.
    """
    rows = _Rows(p, forgotten)
    square = _matrix(means, (rows.classes, rows.classes), "means of all classes")
    basis = _gram_schmidt_basis(square, rows.forgotten)
    q = _project(rows.w, rows.p, rows.keep, basis, basis)
    return rows.settle(q, destinations(square[list(rows.forgotten)], rows.forgotten))


def tempered(
    p: npt.ArrayLike,
    forgotten: Sequence[int],
    temperature: float = DEFAULT_TEMPERATURE,
    fallback: npt.ArrayLike | None = None,
) -> Array:
    """Return ``q_R`` proportional to ``p_R^(1/t)`` with ``t = 1 + (T - 1) sum(p_F)``.

    A row with no probability on the forgotten classes is renormalised; the more of it a row has, the flatter its
    answer, up to temperature ``T``: what a model that never saw the class says about it. The ranking of the
    retained classes stays. Our own method.

    Args:
        p: ``[..., n]`` probabilities.
        forgotten: ``k`` distinct class indices, ``0 < k < n``.
        temperature: ``T`` in [1, 1000]; 1 is :func:`renormalize`.
        fallback: as in :func:`renormalize`.

    Returns:
        ``[..., n]`` float64, non-negative, rows sum to 1, exactly 0 on the forgotten classes.

    Raises:
        DataError: ``p`` is not an array of numbers ``[..., n]``.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        MPRUError: ``temperature`` is out of its range.

    Example:
        >>> tempered([0.8, 0.2, 0.0], [2])
        array([0.8, 0.2, 0. ])
    """
    rows = _Rows(p, forgotten)
    extra = _temperature(temperature) - 1.0
    p_f = np.minimum(np.where(rows.keep, 0.0, rows.p).sum(axis=-1, keepdims=True), 1.0)
    with np.errstate(invalid="ignore"):  # rows with NaN or infinity: settle() makes them NaN
        flat = rows.p_r ** (1.0 / (1.0 + extra * p_f))
    return rows.settle(_share(flat), fallback)


def mask(p: npt.ArrayLike, forgotten: Sequence[int]) -> Array:
    """Return ``q_R = p_R``, ``q_F = 0``: for multi-label models, whose probabilities are independent of each other.

    Args:
        p: ``[..., n]`` probabilities, each in [0, 1], of any sum.
        forgotten: ``k`` distinct class indices, ``0 < k < n``.

    Returns:
        ``[..., n]`` float64, exactly 0 on the forgotten classes, also in rows that hold a NaN.

    Raises:
        DataError: ``p`` is not an array of numbers ``[..., n]``.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.

    Example:
        >>> mask([0.9, 0.2, 0.6], [2])
        array([0.9, 0.2, 0. ])
    """
    rows = check_scores(p)
    return np.where(_keep(rows.shape[-1], check_forget_list(rows.shape[-1], forgotten)), rows, 0.0)


# ---------------------------------------------------------------------------------------------------------------
# A filter as a value


@dataclass(frozen=True, eq=False)
class FilterSpec:
    """Everything a filter is: the manifest describes it, the layer and the spliced graph are built from it.

    Build it with :func:`make_filter`. Two specs are equal when their :meth:`digest` is.

    Attributes:
        classes: ``n``, at least 2.
        forgotten: ``k`` class indices, ascending.
        method: one of :data:`METHODS`, or :data:`MASK`.
        temperature: ``T`` of ``tempered``, None for the other methods.
        coefficients: ``[n, k]`` float64 ``C`` of the projection methods (``U (U'U)^-1``, or ``B``), else None.
        directions: ``[n, k]`` float64 ``D`` of the projection methods (``U``, or ``B``), else None. The projection
            is ``y = p - D C' p``: constants have rank ``k``, no ``n x n`` matrix is ever formed.
        fallback: ``[k, n]`` float64, rows are distributions over the retained classes; None for uniform.
    """

    classes: int
    forgotten: tuple[int, ...]
    method: str
    temperature: float | None = None
    coefficients: Array | None = None
    directions: Array | None = None
    fallback: Array | None = None

    def __post_init__(self) -> None:
        forgotten = tuple(sorted(check_forget_list(self.classes, self.forgotten)))
        method = check_method(self.method)
        k = len(forgotten)
        projects = method in ("mean", "gram_schmidt")
        if {self.coefficients is not None, self.directions is not None} != {projects}:
            raise MPRUError(
                explain(
                    f"A {method} filter {'needs' if projects else 'has no'} coefficients and directions.",
                    received=f"coefficients {_shape(self.coefficients)}, directions {_shape(self.directions)}",
                    valid=f"two arrays of shape {(self.classes, k)} for mean and gram_schmidt, none otherwise",
                )
            )
        if method != "tempered" and self.temperature is not None:
            raise MPRUError(
                explain(
                    f"A {method} filter has no temperature.", received=self.temperature, valid="None unless tempered"
                )
            )
        values: dict[str, Any] = {
            "forgotten": forgotten,
            "temperature": _temperature(self.temperature) if method == "tempered" else None,
            "coefficients": _constant(self.coefficients, (self.classes, k), "coefficients"),
            "directions": _constant(self.directions, (self.classes, k), "directions"),
            "fallback": _constant(self.fallback, (k, self.classes), "fallback"),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def retained(self) -> tuple[int, ...]:
        """The classes that stay, ascending."""
        gone = set(self.forgotten)
        return tuple(c for c in range(self.classes) if c not in gone)

    def probabilities(self, p: npt.ArrayLike) -> Array:
        """Filter probabilities ``[..., n]`` of any float dtype; returns float64 of the same shape.

        Raises:
            DataError: ``p`` does not hold numbers, or its last dimension is not ``n``.
        """
        if self.method == MASK:
            return mask(self._checked(p), self.forgotten)
        if self.method == "tempered":
            assert self.temperature is not None
            return tempered(self._checked(p), self.forgotten, self.temperature, self.fallback)
        if self.method == "renormalize":
            return renormalize(self._checked(p), self.forgotten, fallback=self.fallback)
        assert self.coefficients is not None
        assert self.directions is not None
        rows = _Rows(self._checked(p), self.forgotten)
        return rows.settle(_project(rows.w, rows.p, rows.keep, self.coefficients, self.directions), self.fallback)

    def logits(self, z: npt.ArrayLike) -> Array:
        """Filter logits: the softmax (for ``mask``, the sigmoid) of the result is ``q`` of that of ``z``.

        The result is ``log q + logsumexp(z_R)``, so that ``renormalize`` does not move the retained logits by a
        bit, nor does ``tempered`` where ``t = 1``. Retained probabilities are taken from a softmax over the
        retained logits alone and so never underflow. Under the other methods than ``renormalize`` a retained class
        whose ``q`` is 0 gets :data:`FORGOTTEN_LOGIT` as well. Where all retained logits are (next to) minus
        infinity the row becomes the logarithm of the fallback.

        Args:
            z: ``[..., n]`` logits of any float dtype; the dtype decides which :data:`FORGOTTEN_LOGIT` is used.

        Returns:
            ``[..., n]`` float64 logits; the forgotten entries are exactly ``FORGOTTEN_LOGIT[dtype of z]``.

        Raises:
            DataError: ``z`` does not hold numbers, or its last dimension is not ``n``.
        """
        raw = self._checked(z)
        hidden = FORGOTTEN_LOGIT.get(np.asarray(z).dtype.name, FORGOTTEN_LOGIT["float64"])
        if self.method == MASK:
            return np.where(_keep(self.classes, self.forgotten), raw, hidden)
        usable = (raw < np.inf).all(axis=-1, keepdims=True)  # neither NaN nor plus infinity, as softmax wants it
        floored = np.where(usable, np.maximum(raw, LOGIT_FLOOR), 0.0)
        kept = list(self.retained)
        z_r = floored[..., kept]
        p = _softmax(floored)
        q_r = self._retained_logits(raw[..., kept], z_r, p, hidden)
        no_retained = z_r.max(axis=-1, keepdims=True) < hidden / 2
        mixed = _mix(p, self.forgotten, self.retained, self.fallback)[..., kept]
        q_r = np.where(no_retained, _log(mixed, hidden), q_r)
        result = np.full(raw.shape, hidden)
        result[..., kept] = np.where(usable, q_r, np.nan)
        return result

    def _retained_logits(self, raw_r: Array, z_r: Array, p: Array, hidden: float) -> Array:
        lse = _logsumexp(z_r)
        if self.method == "renormalize" or self.temperature == 1.0:
            return raw_r
        if self.method == "tempered":
            assert self.temperature is not None
            p_f = p[..., list(self.forgotten)].sum(axis=-1, keepdims=True)
            y_r = z_r / (1.0 + (self.temperature - 1.0) * p_f)
            return np.where(z_r <= LOGIT_FLOOR, hidden, y_r + (lse - _logsumexp(y_r)))
        assert self.coefficients is not None
        assert self.directions is not None
        w = np.zeros_like(p)
        w[..., list(self.retained)] = np.exp(z_r - lse)
        keep = _keep(self.classes, self.forgotten)
        q = _project(w, p, keep, self.coefficients, self.directions)
        return _log(q[..., list(self.retained)], hidden, lse)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything that decides what the filter answers."""
        digest = hashlib.sha256(repr((self.classes, self.forgotten, self.method, self.temperature)).encode("ascii"))
        for name in ("coefficients", "directions", "fallback"):
            value: Array | None = getattr(self, name)
            digest.update(f"|{name}:{_shape(value)}:".encode("ascii"))
            if value is not None:
                digest.update(np.ascontiguousarray(value, dtype="<f8").tobytes())
        return digest.hexdigest()

    def to_config(self) -> dict[str, Any]:
        """Return the filter as a dictionary that JSON can carry without loss."""

        def rows(value: Array | None) -> list[list[float]] | None:
            return None if value is None else value.tolist()

        return {
            "classes": self.classes,
            "forgotten": list(self.forgotten),
            "method": self.method,
            "temperature": self.temperature,
            "coefficients": rows(self.coefficients),
            "directions": rows(self.directions),
            "fallback": rows(self.fallback),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FilterSpec:
        """Return the filter that :meth:`to_config` described.

        Raises:
            MPRUError: keys are missing or unknown, or the values do not make a filter.
        """
        known = set(cls.__dataclass_fields__)
        if set(config) != known:
            raise MPRUError(
                explain(
                    "This does not describe a filter.", received=f"keys {sorted(config)}", valid=f"keys {sorted(known)}"
                )
            )
        return cls(**{**config, "forgotten": tuple(config["forgotten"])})

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, FilterSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def _checked(self, scores: npt.ArrayLike) -> Array:
        return check_scores(scores, self.classes)


def make_filter(
    classes: int,
    forgotten: Sequence[int],
    method: str = DEFAULT_METHOD,
    *,
    class_means: ClassMeans | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
) -> FilterSpec:
    """Return the filter that forgets ``forgotten`` out of ``classes`` classes.

    Several classes are always forgotten jointly. Preconditions of the class means are not looked at here: call
    :meth:`mpru_tf.class_means.ClassMeans.check` for that.

    Args:
        classes: ``n``.
        forgotten: ``k`` distinct class indices, ``0 < k < n``, in any order.
        method: one of :data:`METHODS`, or :data:`MASK` for a multi-label model.
        class_means: needed by ``mean`` (rows of the forgotten classes) and ``gram_schmidt`` (all rows). The other
            methods use the rows of the forgotten classes, where all are there, for rows without retained probability.
        temperature: ``T`` of ``tempered`` in [1, 1000]; not looked at by the other methods.

    Raises:
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: class means are needed but missing, of another number of classes, or lack rows.
        MPRUError: ``method`` is unknown or ``temperature`` is out of its range.

    Example:
        >>> make_filter(3, [2], "renormalize").probabilities([0.2, 0.2, 0.6])
        array([0.5, 0.5, 0. ])
    """
    check_method(method)
    gone = tuple(sorted(check_forget_list(classes, forgotten)))
    if class_means is not None and class_means.classes != classes:
        raise ClassMeansError(
            explain(
                "The class means belong to another number of classes.",
                received=f"means of {class_means.classes} classes",
                valid=f"means of {classes} classes",
            )
        )
    needed = {"mean": gone, "gram_schmidt": tuple(range(classes))}.get(method, ())
    have = set() if class_means is None else set(class_means.rows)
    missing = [c for c in needed if c not in have]
    if missing:
        problem = "needs class means." if class_means is None else "needs class means that are not there."
        raise ClassMeansError(
            explain(
                f"The method {method} {problem}",
                received="none" if class_means is None else f"no mean of class {_listing(missing)}",
                valid="a mean of every forgotten class" if method == "mean" else "a mean of every class",
                hint="Collect them, or use tempered or renormalize, which need none.",
            )
        )
    means_f: Array | None = None
    if class_means is not None and method != MASK and have.issuperset(gone):
        means_f = np.stack([class_means.row(c) for c in gone]).astype(np.float64)
    fallback = None if means_f is None else destinations(means_f, gone)
    coefficients: Array | None = None
    directions: Array | None = None
    if method == "mean":
        assert means_f is not None
        coefficients, directions = _mean_constants(means_f)
    elif method == "gram_schmidt":
        assert class_means is not None
        square = np.stack([class_means.row(c) for c in range(classes)]).astype(np.float64)
        coefficients = directions = _gram_schmidt_basis(square, gone)
    return FilterSpec(
        classes=classes,
        forgotten=gone,
        method=method,
        temperature=temperature if method == "tempered" else None,
        coefficients=coefficients,
        directions=directions,
        fallback=fallback,
    )


# ---------------------------------------------------------------------------------------------------------------
# Checks


def check_forget_list(classes: int, forgotten: Sequence[int]) -> tuple[int, ...]:
    """Return ``forgotten`` as plain ints, in the order given.

    Raises:
        ForgetListError: it is empty, names all classes, one twice, or something that is no class.
    """
    if classes < 2:
        raise ForgetListError(
            explain(
                "Nothing can be forgotten: one class must be left.", received=f"{classes} classes", valid="2 or more"
            )
        )
    valid = f"1 to {classes - 1} distinct class indices in 0 to {classes - 1}"
    indices: list[int] = []
    for item in forgotten:
        try:
            if isinstance(item, (bool, np.bool_)):
                raise TypeError
            index = operator.index(item)
        except TypeError:
            raise ForgetListError(
                explain("A class to forget is not a class index.", received=repr(item), valid=valid)
            ) from None
        if not 0 <= index < classes:
            raise ForgetListError(
                explain(f"There is no class {index}: the model has {classes} classes.", received=index, valid=valid)
            )
        indices.append(index)
    doubled = sorted({i for i in indices if indices.count(i) > 1}) if len(set(indices)) < len(indices) else []
    if doubled:
        raise ForgetListError(
            explain(f"Class {_listing(doubled)} is named more than once.", received=_listing(indices), valid=valid)
        )
    if not indices:
        raise ForgetListError(explain("There is no class to forget.", received="an empty list", valid=valid))
    if len(indices) == classes:
        raise ForgetListError(
            explain(
                f"All {classes} classes were named: at least one must be retained.",
                received=_listing(indices),
                valid=valid,
            )
        )
    return tuple(indices)


def check_method(method: str) -> str:
    """Return ``method``.

    Raises:
        MPRUError: it is neither one of :data:`METHODS` nor :data:`MASK`.
    """
    if method not in (*METHODS, MASK):
        raise MPRUError(explain("There is no such method.", received=repr(method), valid=", ".join((*METHODS, MASK))))
    return method


def check_scores(scores: npt.ArrayLike, classes: int | None = None) -> Array:
    """Return class scores as float64 ``[..., n]``.

    Raises:
        DataError: they are not numbers, have no axis, or the last dimension is not ``classes`` (where given).
    """
    try:
        array = np.asarray(scores)
        if array.dtype.kind == "c" or array.dtype.kind in "SUOMm":
            raise TypeError
        values = array.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(
            explain(
                "Class scores must be numbers in a rectangular array.", received=_kind(scores), valid="[..., n] floats"
            )
        ) from None
    if values.ndim == 0 or (classes is not None and values.shape[-1] != classes):
        raise DataError(
            explain(
                "Class scores have the wrong last dimension.",
                received=f"shape {values.shape}",
                valid="[..., n]" if classes is None else f"[..., {classes}]",
            )
        )
    return values


def _temperature(temperature: float | None) -> float:
    if not isinstance(temperature, (int, float, np.integer, np.floating)) or not 1.0 <= temperature <= MAX_TEMPERATURE:
        raise MPRUError(
            explain(
                "The temperature is out of its range.",
                received=repr(temperature),
                valid=f"a number from 1 (the same as renormalize) to {MAX_TEMPERATURE:.0f} (uniform, nearly)",
            )
        )
    return float(temperature)


def _matrix(value: npt.ArrayLike, shape: tuple[int, int], what: str) -> Array:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise ClassMeansError(
            explain(
                f"The {what} do not fit.",
                received=f"shape {matrix.shape}{'' if np.isfinite(matrix).all() else ' with NaN or infinity in it'}",
                valid=f"shape {shape}, finite",
            )
        )
    return matrix


def _constant(value: npt.ArrayLike | None, shape: tuple[int, int], what: str) -> Array | None:
    if value is None:
        return None
    array = np.array(value, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise MPRUError(
            explain(f"The {what} of a filter do not fit.", received=f"shape {array.shape}", valid=f"{shape}, finite")
        )
    array.setflags(write=False)
    return array


def _shape(value: Array | None) -> str:
    return "none" if value is None else str(np.shape(value))


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _listing(indices: Sequence[int]) -> str:
    shown = ", ".join(str(i) for i in indices[:10])
    return shown if len(indices) <= 10 else f"{shown} and {len(indices) - 10} more"


# ---------------------------------------------------------------------------------------------------------------
# Constants


def destinations(means_f: Array, forgotten: Sequence[int]) -> Array:
    """Return ``[k, n]``: where the probability of each forgotten class's mean goes when the class is taken out.

    Args:
        means_f: ``[k, n]`` class means of ``forgotten``, in that order.
        forgotten: ``k`` class indices.

    Returns:
        Rows ``m_f``: ``mu_f`` over the retained classes, divided by its sum; uniform where nothing is left of it.
    """
    keep = _keep(means_f.shape[-1], forgotten)
    left = np.where(keep & (means_f >= UNDERFLOW), means_f, 0.0)
    return np.where(left.sum(axis=-1, keepdims=True) > 0, _share(left), keep / keep.sum())


def _mean_constants(means_f: Array) -> tuple[Array, Array]:
    u = means_f.T
    # The pseudo-inverse is (U'U)^-1 U' wherever that exists; for equal means it projects off what they do span.
    return np.linalg.pinv(u).T, u


def _gram_schmidt_basis(means: Array, forgotten: Sequence[int]) -> Array:
    keep = _keep(means.shape[0], forgotten)
    ordered = np.concatenate([means[keep], means[~keep]]).T
    basis, _ = np.linalg.qr(ordered)
    return np.asarray(basis[:, int(keep.sum()) :])


# ---------------------------------------------------------------------------------------------------------------
# Kernels


class _Rows:
    """Probabilities taken apart: what every method starts from, and the rules that every method ends with."""

    def __init__(self, p: npt.ArrayLike, forgotten: Sequence[int]) -> None:
        raw = check_scores(p)
        self.classes = raw.shape[-1]
        self.forgotten = check_forget_list(self.classes, forgotten)
        self.keep = _keep(self.classes, self.forgotten)
        self.p = np.where(raw < UNDERFLOW, 0.0, raw)
        self.p_r = np.where(self.keep, self.p, 0.0)
        self.w = _share(self.p_r)

    def settle(self, q: Array, fallback: npt.ArrayLike | None) -> Array:
        """Return ``q`` with the rows put right that have no retained probability, or no meaning."""
        rows = None if fallback is None else _matrix(fallback, (len(self.forgotten), self.classes), "fallback rows")
        retained = tuple(np.flatnonzero(self.keep))
        nothing = self.p_r.sum(axis=-1, keepdims=True) == 0
        q = np.where(nothing, _mix(self.p, self.forgotten, retained, rows), q)
        q = np.where(np.isfinite(self.p).all(axis=-1, keepdims=True), q, np.nan)
        return np.where(self.keep, q, 0.0)


def _project(w: Array, p: Array, keep: npt.NDArray[np.bool_], coefficients: Array, directions: Array) -> Array:
    """Return ``max(0, w + sum_j A_j (s_j w - D[R, j]))`` over its sum, ``A = p C``, ``s_j = sum(D[R, j])``."""
    kept = np.where(keep[:, None], directions, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):  # rows with NaN or infinity are put right by the caller
        a = p @ coefficients
        q = w * (1.0 + a @ kept.sum(axis=0)[:, None]) - a @ kept.T
        q = np.where(q > 0, q, 0.0)
        return np.where(q.sum(axis=-1, keepdims=True) > 0, _share(q), w)


def _mix(p: Array, forgotten: Sequence[int], retained: Sequence[int], fallback: Array | None) -> Array:
    """Return the row that stands in where no retained probability is left."""
    if fallback is None:
        uniform = np.zeros(p.shape[-1])
        uniform[list(retained)] = 1.0 / len(retained)
        return np.broadcast_to(uniform, p.shape)
    with np.errstate(invalid="ignore"):
        return np.asarray(_share(p[..., list(forgotten)] + MIX_FLOOR) @ fallback)


def _keep(classes: int, forgotten: Sequence[int]) -> npt.NDArray[np.bool_]:
    keep = np.ones(classes, dtype=np.bool_)
    keep[list(forgotten)] = False
    return keep


def _share(x: Array) -> Array:
    """Return ``x`` over its sum along the last axis; zeros where that sum is zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        total = x.sum(axis=-1, keepdims=True)
        return np.asarray(x / np.where(total == 0, 1.0, total))


def _log(q: Array, hidden: float, offset: Array | float = 0.0) -> Array:
    zero = q < UNDERFLOW
    return np.where(zero, hidden, np.log(np.where(zero, 1.0, q)) + offset)


def _logsumexp(z: Array) -> Array:
    top = z.max(axis=-1, keepdims=True)
    return np.asarray(top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))


def _softmax(z: Array) -> Array:
    return _share(np.exp(z - z.max(axis=-1, keepdims=True)))
