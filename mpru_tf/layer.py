"""The output filter in TensorFlow: :func:`filter_tensor` for graphs, :class:`MPRULayer` for Keras models.

The twin of :mod:`mpru_tf.filters`, which holds the formulas, their source and the rules for degenerate rows; the
tests hold the two together. What is particular here:

* :func:`filter_tensor` is traced into SavedModels made by others and runs in their every request: few nodes, constants
  only, of rank ``k`` (``[batch, n] x [n, k]``, never ``n x n``), and only operations that TensorFlow Serving knows
  since its first 2.x releases. Whatever is known beforehand is decided in Python.
* float16 and bfloat16 are computed in float32 and cast back; float64 stays float64.
* What Max, Maximum and Relu make of a NaN differs between kernels, so none of them decides about one: rows that
  have no meaning are found by a comparison, which is false for NaN everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from mpru_tf.errors import DataError, UnsupportedModelError, explain
from mpru_tf.filters import (
    DEFAULT_METHOD,
    DEFAULT_TEMPERATURE,
    FORGOTTEN_LOGIT,
    LOGIT_FLOOR,
    MASK,
    MIX_FLOOR,
    UNDERFLOW,
    Array,
    FilterSpec,
    make_filter,
)

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans


def filter_tensor(x: tf.Tensor, spec: FilterSpec, logits: bool) -> tf.Tensor:
    """Return the filtered class scores, built from stock operations and constants.

    Works eagerly, inside a ``tf.function``, in a TF1 graph and under XLA.

    Args:
        x: class scores ``[..., n]``, float16, bfloat16, float32 or float64, of any rank from 1, also unknown.
        spec: the filter; ``spec.classes`` is ``n``.
        logits: True if ``x`` holds logits (then so does the result), False if it holds probabilities.

    Returns:
        A tensor of the shape and dtype of ``x``. The forgotten entries are exactly 0 (probabilities) or exactly
        ``FORGOTTEN_LOGIT[dtype]`` (logits), in every row.

    Raises:
        DataError: ``x`` has another dtype, no axis, or statically another last dimension than ``n``. A last dimension
            that is only known at run time and differs raises TensorFlow's InvalidArgumentError there.
    """
    x = tf.convert_to_tensor(x)
    if x.dtype.name not in FORGOTTEN_LOGIT:
        raise DataError(
            explain("Class scores must be floats.", received=x.dtype.name, valid=", ".join(FORGOTTEN_LOGIT))
        )
    _check_shape(x.shape, spec.classes)
    if x.shape.rank is not None and x.shape[-1] is None:
        x = tf.ensure_shape(x, [*x.shape[:-1], spec.classes])
    if spec.method == MASK:
        return _masked(x, spec, FORGOTTEN_LOGIT[x.dtype.name] if logits else 0.0)
    rows = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    # MatMul takes matrices; a tensor whose rank is unknown also passes here to have its last dimension checked.
    reshaped = x.shape.rank is None or (x.shape.rank != 2 and _multiplies(spec))
    if reshaped:
        rows = tf.reshape(rows, [-1, spec.classes])
    builder = _Builder(spec, rows.dtype)
    result = builder.logits(rows, FORGOTTEN_LOGIT[x.dtype.name]) if logits else builder.probabilities(rows)
    if reshaped:
        # Not the shape of x: with another last dimension than n the number of elements must not fit.
        result = tf.reshape(result, tf.concat([tf.shape(x)[:-1], [spec.classes]], axis=0))
    result = tf.cast(result, x.dtype)
    result.set_shape(x.shape)
    return result


@keras.saving.register_keras_serializable(package="mpru_tf")
class MPRULayer(keras.layers.Layer):
    """A Keras layer that takes forgotten classes out of class scores; it has no weights.

    For those who still hold the Keras model::

        filtered = keras.Sequential([model, MPRULayer(3, 10)])     # a model that ends in a softmax
        filtered = keras.Sequential([model, MPRULayer(3, 10, logits=True)])     # one that ends in logits

    Inputs of any float dtype keep it, whatever the dtype policy is; what is computed in float16 under
    ``mixed_float16`` elsewhere is computed in float32 here. The layer and its constants survive ``.keras`` files,
    ``model.export`` and ``tf.saved_model.save``. Source: see :mod:`mpru_tf.filters`.

    Args:
        forgotten: a class index or several distinct ones; at least one class must be left.
        classes: ``n``, the length of the last axis of the inputs.
        method: ``renormalize``, ``mean``, ``gram_schmidt`` or ``tempered``; ``mask`` for multi-label models.
        class_means: needed by ``mean`` and ``gram_schmidt``.
        logits: True if the inputs are logits (then so are the outputs), False if they are probabilities.
        temperature: of ``tempered``, in [1, 1000].
        **kwargs: passed to ``keras.layers.Layer``.

    Raises:
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: class means are needed but missing, of another number of classes, or lack rows.
        UnsupportedModelError: Keras does not run on TensorFlow.
        MPRUError: ``method`` is unknown or ``temperature`` is out of its range.
    """

    def __init__(
        self,
        forgotten: int | Sequence[int],
        classes: int,
        method: str = DEFAULT_METHOD,
        *,
        class_means: ClassMeans | None = None,
        logits: bool = False,
        temperature: float = DEFAULT_TEMPERATURE,
        **kwargs: Any,
    ) -> None:
        if keras.backend.backend() != "tensorflow":
            raise UnsupportedModelError(
                explain(
                    "MPRULayer is built from TensorFlow operations.",
                    received=f"the Keras backend {keras.backend.backend()}",
                    valid="tensorflow",
                    hint="Set KERAS_BACKEND=tensorflow before Keras is imported.",
                )
            )
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        several = [forgotten] if isinstance(forgotten, (int, np.integer)) else list(forgotten)
        self._spec = make_filter(classes, several, method, class_means=class_means, temperature=temperature)
        self._logits = bool(logits)
        self.supports_masking = True

    @classmethod
    def from_spec(cls, spec: FilterSpec, logits: bool = False, **kwargs: Any) -> MPRULayer:
        """Return the layer of a filter that was built before."""
        layer = cls(spec.forgotten, spec.classes, "renormalize", logits=logits, **kwargs)
        layer._spec = spec
        return layer

    @property
    def spec(self) -> FilterSpec:
        """The filter that the layer applies."""
        return self._spec

    @property
    def logits(self) -> bool:
        """Whether inputs and outputs are logits."""
        return self._logits

    def build(self, input_shape: Any) -> None:
        """Check the input shape; there is nothing else to build."""
        _check_shape(tf.TensorShape(input_shape), self._spec.classes)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the filtered class scores, of the shape and dtype of ``inputs``."""
        return filter_tensor(inputs, self._spec, self._logits)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return ``input_shape``."""
        return input_shape

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a KerasTensor of the shape and dtype of ``inputs``."""
        _check_shape(tf.TensorShape(inputs.shape), self._spec.classes)
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, the filter's constants included."""
        return {**super().get_config(), "spec": self._spec.to_config(), "logits": self._logits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MPRULayer:
        """Return the layer that :meth:`get_config` described."""
        rest = {key: value for key, value in config.items() if key != "spec"}
        return cls.from_spec(FilterSpec.from_config(config["spec"]), **rest)


def _check_shape(shape: tf.TensorShape, classes: int) -> None:
    if shape.rank is None:
        return
    if shape.rank == 0 or shape[-1] not in (None, classes):
        raise DataError(
            explain(
                "The class scores do not fit the filter: their last dimension is the number of classes.",
                received=f"shape {tuple(shape.as_list())}",
                valid=f"[..., {classes}]",
            )
        )


def _masked(x: tf.Tensor, spec: FilterSpec, hidden: float) -> tf.Tensor:
    """See filters.mask. The last dimension is compared at run time where it is not known: [n] broadcasts over [1]."""
    keep = np.ones(spec.classes, dtype=np.bool_)
    keep[list(spec.forgotten)] = False
    if x.shape.rank is None:
        checked = tf.reshape(x, tf.concat([tf.shape(x)[:-1], [spec.classes]], axis=0))
        return tf.where(tf.constant(keep), checked, tf.constant(hidden, x.dtype))
    return tf.where(tf.constant(keep), x, tf.constant(hidden, x.dtype))


def _multiplies(spec: FilterSpec) -> bool:
    mixes = spec.fallback is not None and len(spec.forgotten) > 1
    return spec.coefficients is not None or mixes


class _Builder:
    """Builds the nodes of one filter in one dtype; see the namesakes in filters.py for what they compute."""

    def __init__(self, spec: FilterSpec, dtype: tf.DType) -> None:
        self.spec = spec
        self.dtype = dtype
        self.keep = np.ones(spec.classes, dtype=np.bool_)
        self.keep[list(spec.forgotten)] = False
        # At temperature 1 the two methods are one.
        self.renormalizes = spec.method == "renormalize" or spec.temperature == 1.0
        self.mixes = spec.fallback is not None and len(spec.forgotten) > 1
        self._constants: dict[tuple[tuple[int, ...], bytes], tf.Tensor] = {}

    def constant(self, value: Any) -> tf.Tensor:
        array = np.asarray(value, dtype=self.dtype.as_numpy_dtype)
        key = (array.shape, array.tobytes())
        if key not in self._constants:  # one node per value
            self._constants[key] = tf.constant(array)
        return self._constants[key]

    def probabilities(self, p: tf.Tensor) -> tf.Tensor:
        zero = self.constant(0.0)
        negligible = p < self.constant(UNDERFLOW)
        raw, p = p, tf.where(negligible, zero, p)
        # A product and not a selection: a NaN at a forgotten class must reach the total, and 0 * NaN is NaN.
        q = p * self.constant(self.keep)
        if self.spec.temperature is not None and not self.renormalizes:
            # p^(1/t) = p * p^e with e = 1/t - 1: exactly p where t = 1, and with a finite gradient where p = 0.
            one, most = self.constant(1.0), self.constant(1.0 - self.spec.temperature)
            warmth = tf.maximum(self.sum(p * self.constant((1.0 - self.spec.temperature) * ~self.keep)), most)
            q = q * tf.pow(tf.where(negligible, one, raw), warmth / (one - warmth))
        total = self.sum(q)
        q = tf.math.divide_no_nan(q, total)
        if self.spec.coefficients is not None:
            q = self.project(q, p)
        stand_in = self.mixture(p) if self.mixes else self.constant(self.stand_in())
        q = tf.where(tf.equal(total, zero), stand_in, q)
        return tf.where(total < self.constant(np.inf), q, self.constant(np.where(self.keep, np.nan, 0.0)))

    def logits(self, z: tf.Tensor, hidden: float) -> tf.Tensor:
        # False for NaN and for plus infinity, which softmax makes NaN, and for nothing else
        usable = self.sum(z) < self.constant(np.inf)
        keep = tf.constant(self.keep)
        if self.renormalizes:
            z_r = tf.where(keep, z, self.constant(hidden))
        if self.mixes or not self.renormalizes:
            floor = self.constant(LOGIT_FLOOR)
            z = tf.maximum(z, floor)
            p = self.softmax(z)
        if not self.renormalizes:
            z_r = tf.where(keep, z, floor)
        top = tf.reduce_max(z_r, axis=-1, keepdims=True)
        if self.renormalizes:
            result = z_r
        elif self.spec.temperature is not None:
            result = self.tempered_logits(z_r, top, p, hidden)
        else:
            result = self.projected_logits(z_r, top, p, hidden)
        if self.mixes:
            stand_in = self.log(self.mixture(p), hidden)
        else:
            row = self.stand_in()
            stand_in = self.constant(np.where(row > 0, np.log(np.where(row > 0, row, 1.0)), hidden))
        result = tf.where(top < self.constant(hidden / 2), stand_in, result)
        return tf.where(usable, result, self.constant(np.where(self.keep, np.nan, hidden)))

    def tempered_logits(self, z_r: tf.Tensor, top: tf.Tensor, p: tf.Tensor, hidden: float) -> tf.Tensor:
        assert self.spec.temperature is not None
        t = self.constant(1.0) + self.sum(p * self.constant((self.spec.temperature - 1.0) * ~self.keep))
        y = z_r / t
        # logsumexp(z_R) - logsumexp(y_R), exactly 0 where t = 1
        shift = self.logsumexp(tf.nn.log_softmax(z_r), top) - self.logsumexp(tf.nn.log_softmax(y), top / t)
        return tf.where(z_r <= self.constant(LOGIT_FLOOR), self.constant(hidden), y + shift)

    def projected_logits(self, z_r: tf.Tensor, top: tf.Tensor, p: tf.Tensor, hidden: float) -> tf.Tensor:
        log_w = tf.nn.log_softmax(z_r)
        return self.log(self.project(tf.exp(log_w), p), hidden, self.logsumexp(log_w, top))

    def project(self, w: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
        assert self.spec.coefficients is not None
        assert self.spec.directions is not None
        kept = np.where(self.keep[:, None], self.spec.directions, 0.0)
        a = tf.matmul(p, self.constant(self.spec.coefficients))
        stretch = self.constant(1.0) + tf.matmul(a, self.constant(kept.sum(axis=0)[:, None]))
        q = w * stretch - tf.matmul(a, self.constant(kept.T))
        zero = self.constant(0.0)
        q = tf.maximum(q, zero)
        total = self.sum(q)
        return tf.where(total > zero, tf.math.divide_no_nan(q, total), w)

    def stand_in(self) -> Array:
        """Return the row that replaces one without retained probability, where it is always the same one."""
        return np.asarray(self.keep / self.keep.sum()) if self.spec.fallback is None else self.spec.fallback[0]

    def mixture(self, p: tf.Tensor) -> tf.Tensor:
        share = tf.gather(p, tf.constant(self.spec.forgotten, dtype=tf.int32), axis=-1) + self.constant(MIX_FLOOR)
        return tf.matmul(tf.math.divide_no_nan(share, self.sum(share)), self.constant(self.spec.fallback))

    def log(self, q: tf.Tensor, hidden: float, offset: tf.Tensor | None = None) -> tf.Tensor:
        zero = q < self.constant(UNDERFLOW)
        log = tf.math.log(tf.where(zero, self.constant(1.0), q))
        return tf.where(zero, self.constant(hidden), log if offset is None else log + offset)

    def logsumexp(self, log_softmax: tf.Tensor, top: tf.Tensor) -> tf.Tensor:
        # The largest entry of log_softmax(z) is max(z) - logsumexp(z): fewer nodes than tf.reduce_logsumexp.
        return top - tf.reduce_max(log_softmax, axis=-1, keepdims=True)

    def softmax(self, z: tf.Tensor) -> tf.Tensor:
        # TensorFlow's Softmax spreads its rows over threads: 17 us for [32, 10] on a CPU, against 2 us for these two.
        return tf.exp(tf.nn.log_softmax(z))

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(x, axis=-1, keepdims=True)
