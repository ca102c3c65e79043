"""The output filter in TensorFlow: :func:`filter_tensor` for graphs, :class:`MPRULayer` for Keras models.

The twin of :mod:`mpru_tf.filters`, which holds the formulas, their source and the rules for degenerate rows; the
tests hold the two together. What is particular here:

* :func:`filter_tensor` is traced into SavedModels made by others and runs in their every request: few nodes, constants
  only, of rank ``k`` (``[batch, n] x [n, k]``, never ``n x n``), and only operations that TensorFlow Serving knows
  since its first 2.x releases. Whatever is known beforehand is decided in Python.
* float16 and bfloat16 are computed in float32 and cast back; float64 stays float64.
* What Max, Maximum and Relu make of a NaN differs between kernels, so none of them decides about one: rows that
  have no meaning are found by sums, which keep a NaN everywhere.
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
    """Builds the nodes of one filter in one dtype; see the namesakes in filters.py for what they compute.

    What a node costs decides how it is written: of ``[256, 7]`` float32 a Pow takes 30 us, a LogSoftmax 12, a SelectV2
    5 (of one row still 1.5, six times as much as a sum of two), a reduction or anything of ``[b, n]`` with ``[n]`` or
    ``[b, 1]`` 2 to 4, the rest less than 1. So arithmetic stands where a selection would be plainer, above all
    MulNoNan and DivNoNan: they are 0 where the second argument is, even if the first one is NaN.

    A row without meaning gets its NaN from a ``[b, 1]`` tensor that a sum has made, and only after the last Maximum.
    """

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
        if self.spec.coefficients is None:
            p_r = self.zero_below(p, np.where(self.keep, UNDERFLOW, np.inf))
        else:
            p = self.zero_below(p, UNDERFLOW)
            # A product and not a selection: a NaN at a forgotten class must reach the total, and 0 * NaN is NaN.
            p_r = p * self.constant(self.keep)
        total = self.sum(p_r)
        if self.renormalizes:
            q, divisor = p_r, total + self.nan_unless_below_infinity(total)
        else:
            w = tf.math.divide_no_nan(p_r, total)
            if self.spec.temperature is not None:
                q = self.temper(w, p)
                divisor = self.sum(q)  # inf / inf in w is NaN already
            else:
                q = self.project(w, tf.matmul(p, self.constant(self.spec.coefficients)))
                divisor = self.sum(q) + self.nan_unless_below_infinity(total)
        q = tf.math.divide_no_nan(q, self.retained(divisor))
        if self.mixes:
            stand_in = self.mixture(tf.maximum(self.forgotten(p), self.constant(0.0)))
        else:
            stand_in = self.constant(self.stand_in())
        return tf.where(tf.equal(total, self.constant(0.0)), stand_in, q)

    def temper(self, w: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
        assert self.spec.temperature is not None
        zero, one = self.constant(0.0), self.constant(1.0)
        p_f = self.forgotten(p)
        if len(self.spec.forgotten) > 1:
            p_f = self.sum(tf.maximum(p_f, zero))
        p_f = tf.raw_ops.ClipByValue(t=p_f, clip_value_min=zero, clip_value_max=one)
        # w^(1/t) = w * exp(e log w) with e = 1/t - 1: exactly w where t = 1, and with a finite gradient where w = 0. Of
        # w and not of p_R, because the logarithm of what is next to nothing is large and so are its errors.
        e = p_f / (self.constant(-1.0 / (self.spec.temperature - 1.0)) - p_f)
        return w * tf.exp(tf.math.log(tf.maximum(w, self.constant(UNDERFLOW))) * e)

    def logits(self, z: tf.Tensor, hidden: float) -> tf.Tensor:
        if self.renormalizes:
            # In rows that have a meaning the sum may be minus infinity, but not plus infinity or NaN.
            nan = self.nan_unless_below_infinity(self.sum(z))
            result = z + nan
        else:
            # Adding minus infinity makes NaN of a plus infinity, so total and level are NaN in rows without meaning.
            z_r = z + self.constant(np.where(self.keep, 0.0, -np.inf))
            top = self.top(z_r)
            shifted = z_r - top
            e = tf.exp(shifted)
            total = self.total(e)
            log_total = tf.math.log(total)
            level = top + log_total
            if self.spec.temperature is not None:
                result = self.tempered_logits(z_r, shifted, log_total, self.forgotten_level(z) - level, hidden)
            else:
                result = self.projected_logits(z, e, total, level, hidden)
        result = self.retained(result) + self.constant(np.where(self.keep, 0.0, hidden))
        if self.renormalizes:
            level = self.max(result) + nan
        if self.mixes:
            z_f = self.forgotten(z)
            share = tf.exp(z_f - tf.maximum(self.top(z_f), level))
            stand_in = self.log(self.mixture(share), None, hidden)
        else:
            row = self.stand_in()
            stand_in = self.constant(np.where(row > 0, np.log(np.where(row > 0, row, 1.0)), hidden))
        return tf.where(level < self.constant(hidden / 2), stand_in, result)

    def tempered_logits(
        self, z_r: tf.Tensor, shifted: tf.Tensor, log_total: tf.Tensor, odds: tf.Tensor, hidden: float
    ) -> tf.Tensor:
        assert self.spec.temperature is not None
        p_f = tf.sigmoid(odds)
        part = p_f / (p_f + self.constant(1.0 / (self.spec.temperature - 1.0)))  # 1 - 1/t
        # The floor is finite, for the product, and next to LOGIT_FLOOR it is nothing: what is that low stays there.
        shifted = tf.maximum(shifted, self.constant(-1e13))
        moved = shifted * part
        log_flat = tf.math.log(self.total(tf.exp(shifted - moved)))
        # z_R / t + logsumexp(z_R) - logsumexp(z_R / t), exactly z_R where t = 1
        return tf.maximum(z_r - moved, self.constant(hidden)) + (log_total - log_flat)

    def projected_logits(
        self, z: tf.Tensor, e_r: tf.Tensor, total: tf.Tensor, level: tf.Tensor, hidden: float
    ) -> tf.Tensor:
        e = tf.exp(z - self.top(z))
        a = tf.matmul(e, self.constant(self.spec.coefficients)) / self.total(e)
        q = self.project(e_r, a, total)
        return self.log(tf.math.divide_no_nan(q, self.sum(q)), level, hidden)

    def project(self, w: tf.Tensor, a: tf.Tensor, total: tf.Tensor | None = None) -> tf.Tensor:
        """Return a multiple of ``q``, for ``w`` of the sum ``total`` (None for 1) and ``a = p C``."""
        assert self.spec.directions is not None
        kept = np.where(self.keep[:, None], self.spec.directions, 0.0)
        stretch = self.constant(1.0) + tf.matmul(a, self.constant(kept.sum(axis=0)[:, None]))
        q = w * stretch - tf.matmul(a if total is None else a * total, self.constant(kept.T))
        zero = self.constant(0.0)
        q = tf.maximum(q, zero)
        return tf.where(self.sum(q) > zero, q, w)

    def stand_in(self) -> Array:
        """Return the row that replaces one without retained probability, where it is always the same one."""
        return np.asarray(self.keep / self.keep.sum()) if self.spec.fallback is None else self.spec.fallback[0]

    def mixture(self, share: tf.Tensor) -> tf.Tensor:
        share = share + self.constant(MIX_FLOOR)
        return tf.matmul(share / self.sum(share), self.constant(self.spec.fallback))

    def log(self, q: tf.Tensor, offset: tf.Tensor | None, hidden: float) -> tf.Tensor:
        """Return ``log q + offset``, ``hidden`` where ``q`` is 0, NaN where the offset is."""
        underflow = self.constant(UNDERFLOW)
        log = tf.math.log(tf.maximum(q, underflow))
        log = log if offset is None else log + offset
        # Beside LOGIT_FLOOR a logarithm is nothing: the sum is LOGIT_FLOOR.
        log = log + tf.cast(q < underflow, self.dtype) * self.constant(LOGIT_FLOOR)
        if hidden > LOGIT_FLOOR:
            log = tf.maximum(log, self.constant(hidden))
            log = log if offset is None else log + self.nan_unless_below_infinity(offset)
        return log

    def zero_below(self, p: tf.Tensor, bound: Any) -> tf.Tensor:
        """Return ``p`` with 0 for what is less than ``bound``; a NaN is not."""
        less = tf.cast(p < self.constant(bound), self.dtype)
        # Not a product with the opposite comparison: XLA makes a selection of it, and a NaN would become 0.
        return tf.math.multiply_no_nan(p, self.constant(1.0) - less)

    def retained(self, x: tf.Tensor) -> tf.Tensor:
        """Return ``[b, n]``: ``x``, which may also be ``[b, 1]``, and 0 at the forgotten classes even for a NaN."""
        return tf.math.multiply_no_nan(x, self.constant(self.keep))

    def forgotten(self, x: tf.Tensor) -> tf.Tensor:
        """Return the columns of the forgotten classes, ``[b, k]``."""
        return tf.gather(x, tf.constant(self.spec.forgotten, dtype=tf.int32), axis=-1)

    def forgotten_level(self, z: tf.Tensor) -> tf.Tensor:
        """Return the logsumexp over the forgotten classes, ``[b, 1]``."""
        k = len(self.spec.forgotten)
        if k == 1:
            return self.forgotten(z)
        # Gather takes 5 ns for each number: where many are forgotten, all columns are faster.
        z_f = self.forgotten(z) if 4 * k <= self.spec.classes else z + self.constant(np.where(self.keep, -np.inf, 0.0))
        top = self.top(z_f)
        return top + tf.math.log(self.total(tf.exp(z_f - top)))

    def total(self, e: tf.Tensor) -> tf.Tensor:
        # MIX_FLOOR is nothing beside the 1 that is in the sum; in rows of minus infinity it keeps gradients finite.
        return self.sum(e) + self.constant(MIX_FLOOR)

    def nan_unless_below_infinity(self, x: tf.Tensor) -> tf.Tensor:
        # 1 / (x - inf) is -0, which changes nothing that it is added to, or NaN.
        return tf.math.reciprocal(x - self.constant(np.inf))

    def top(self, z: tf.Tensor) -> tf.Tensor:
        return tf.maximum(self.max(z), self.constant(LOGIT_FLOOR))

    def max(self, z: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(z, axis=-1, keepdims=True)

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(x, axis=-1, keepdims=True)
