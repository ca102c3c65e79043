"""CIFAR-style residual networks for the quick start, the export script and the experiments.

Depths 6n + 2 (8, 20, 32, 56, ...) are the three-stage networks of He, Zhang, Ren and Sun, "Deep Residual Learning for
Image Recognition", arXiv 1512.03385, section 4.2. Depth 18 has the four stages of that paper's ImageNet network. Its
stem is a 3x3 convolution, which fits 32x32 pixels, or the 7x7 one with pooling that the paper has for larger pictures.

Heavy imports happen inside the functions: importing this module loads neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpru_tf.errors import DataError, ModelError, explain
from mpru_tf.labels import write_labels
from mpru_tf.versions import publish, staged

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Stage:
    """Residual blocks that share one size: their number, their channels and the stride of the first."""

    blocks: int
    channels: int
    stride: int


def stages(depth: int, width: int | None = None) -> tuple[Stage, ...]:
    """Return the stages of a network.

    Args:
        depth: 18, or 6n + 2 with n >= 1 (8, 14, 20, ..., 56, ..., 110, ...).
        width: channels of the first stage, doubled at each further one; 64 for depth 18 and 16 otherwise if None.

    Raises:
        ModelError: there is no such network.
    """
    if depth != 18 and (depth < 8 or (depth - 2) % 6):
        raise ModelError(
            explain(
                "There is no such ResNet.", received=f"depth {depth}", valid="18, or 6n + 2: 8, 14, 20, ..., 56, ..."
            )
        )
    if width is not None and width < 1:
        raise ModelError(explain("A ResNet has at least one channel.", received=f"width {width}"))
    first = width or (64 if depth == 18 else 16)
    count, blocks = (4, 2) if depth == 18 else (3, (depth - 2) // 6)
    return tuple(Stage(blocks, first * 2**i, stride=1 if i == 0 else 2) for i in range(count))


def build_resnet(
    depth: int,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    width: int | None = None,
    shortcut: Literal["A", "B"] = "A",
    stem: Literal["small", "imagenet"] = "small",
    scale: float = 1.0,
    logits: bool = False,
) -> keras.Model:
    """Build a residual network as a Keras functional model.

    Args:
        depth: 18, or 6n + 2 (8, 20, 56, ...).
        input_shape: height and width in pixels (any), and channels.
        classes: number of classes n.
        width: channels of the first stage; 64 for depth 18 and 16 otherwise if None.
        shortcut: what a shortcut does where the size changes. ``A`` takes every second pixel and pads the new
            channels with zeros (no weights; the paper's choice on CIFAR-10); ``B`` is a strided 1x1 convolution.
        stem: what comes before the stages. ``small`` is a 3x3 convolution (the paper's on CIFAR-10); ``imagenet`` a
            7x7 convolution and a 3x3 maximum, each with stride 2: a sixteenth of the pixels is left (the paper's
            table 1), for pictures, or to train fast.
        scale: what pixels are multiplied with first, for example 1/255, so that clients can send them raw.
        logits: answer logits in place of probabilities.

    Returns:
        An uncompiled model from float32 [batch, height, width, channels] to float32 [batch, n]: probabilities, or
        logits.

    Raises:
        ModelError: there is no ResNet of this depth.
    """
    import keras

    plan = stages(depth, width)
    pixels = keras.Input(input_shape, name="pixels", dtype="float32")
    x = pixels if scale == 1.0 else keras.layers.Rescaling(scale, name="scale")(pixels)
    large = stem == "imagenet"
    x = _convolve(x, plan[0].channels, stride=2 if large else 1, name="stem", kernel=7 if large else 3)
    x = keras.layers.ReLU(name="stem_relu")(x)
    if large:
        x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    for s, stage in enumerate(plan, start=1):
        for b in range(1, stage.blocks + 1):
            x = _block(x, stage.channels, stage.stride if b == 1 else 1, shortcut, name=f"stage{s}_block{b}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    scores = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
    if not logits:
        scores = keras.layers.Softmax(dtype="float32", name="probabilities")(scores)
    return keras.Model(pixels, scores, name=f"resnet{depth}")


def train(
    model: keras.Model,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    optimizer: Literal["sgd", "adam"] = "sgd",
    shift: int = 0,
    flip: bool = False,
    validation: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, list[float]]:
    """Train a classifier with a cosine schedule, after a first epoch of warm-up.

    Args:
        model: takes ``x``, answers [batch, n] probabilities, or logits if its last layer is no softmax.
        x: examples [N, ...]; y: class indices [N].
        epochs: passes over ``x``, in a new order each; the examples that fill no batch are left out of that pass.
        batch_size: examples per step; at most all of them.
        learning_rate: the peak of the schedule.
        weight_decay: pull on the weights, as a multiple of the learning rate.
        optimizer: ``sgd`` with Nesterov's momentum of 0.9, or ``adam``, which wants a lower rate (0.01).
        shift: move each image by up to so many pixels, filling with zeros.
        flip: mirror half of the images left to right.
        validation: examples and classes that are evaluated after each epoch.
        seed: decides order and augmentation. Weights are drawn when a model is built: seed that on your own.
        progress: show a bar with loss and accuracy on stderr.

    Returns:
        What Keras calls the history: ``loss``, ``accuracy`` and, with ``validation``, their ``val_`` twins.

    Raises:
        DataError: ``x`` and ``y`` do not belong together, or there is nothing to train on.
    """
    import keras

    if len(x) != len(y) or not len(x) or epochs < 1:
        raise DataError(
            explain(
                "There is nothing to train on.",
                received=f"{len(x)} examples, {len(y)} labels, {epochs} epochs",
                valid="one label per example, and at least one example and one epoch",
            )
        )
    keras.utils.set_random_seed(seed)
    batch_size = min(batch_size, len(x))
    steps = len(x) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / 10,
        warmup_target=learning_rate,
        warmup_steps=steps,
        decay_steps=max(1, steps * (epochs - 1)),
    )
    made = (
        keras.optimizers.Adam(schedule, weight_decay=weight_decay)
        if optimizer == "adam"
        else keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    )
    model.compile(
        optimizer=made,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=answers_logits(model)),
        metrics=["accuracy"],
    )
    callbacks = [_progress_bar(keras, epochs, steps)] if progress else []
    history = model.fit(
        _batches(x, y, batch_size, shift, flip, seed),
        epochs=epochs,
        validation_data=validation,
        validation_batch_size=512,
        callbacks=callbacks,
        shuffle=False,  # the batches are drawn in a new order as it is
        verbose=0,
    )
    return {name: [float(value) for value in values] for name, values in history.history.items()}


def answers_logits(model: keras.Model) -> bool:
    """Whether the last layer of ``model`` leaves the class scores as logits, judged by its name and activation."""
    last = model.layers[-1]
    activation = getattr(last, "activation", None)
    return type(last).__name__ != "Softmax" and getattr(activation, "__name__", None) != "softmax"


def export_version(model: keras.Model, base: str | Path, labels: Sequence[str] | None = None) -> Path:
    """Export a Keras model as the next servable version of a base path.

    The version is staged in a sibling directory that TensorFlow Serving does not take for a version, and appears
    under its number complete, with one rename. Nothing that exists is overwritten.

    Args:
        model: any Keras model; its outputs are exported as they are.
        base: the base path; made if missing.
        labels: one label per class, written to ``assets.extra/labels.txt``.

    Returns:
        The version directory: ``base/1``, or one more than the highest version there.

    Raises:
        PublishError: the version directory could not be written.
        LabelsError: a label cannot be written on one line.
    """
    base = Path(base)
    with staged(base) as staging:
        model.export(str(staging), verbose=False)
        if labels is not None:
            write_labels(staging, labels)
        return base / str(publish(staging, base))


def _convolve(x: Any, channels: int, stride: int, name: str, kernel: int = 3) -> Any:
    import keras

    convolution = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    # The default momentum of 0.99 needs hundreds of steps before evaluation sees the statistics of training.
    return keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(convolution(x))


def _block(x: Any, channels: int, stride: int, shortcut: str, name: str) -> Any:
    import keras

    y = _convolve(x, channels, stride, name=f"{name}_1")
    y = keras.layers.ReLU(name=f"{name}_1_relu")(y)
    y = _convolve(y, channels, stride=1, name=f"{name}_2")
    if stride != 1 or x.shape[-1] != channels:
        x = _shortcut_a(x, channels, stride, name) if shortcut == "A" else _shortcut_b(x, channels, stride, name)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def _shortcut_a(x: Any, channels: int, stride: int, name: str) -> Any:
    import keras

    if stride != 1:
        # "same" so that an odd size rounds up, as it does in the strided convolution beside it.
        x = keras.layers.MaxPooling2D(1, strides=stride, padding="same", name=f"{name}_skip")(x)
    missing = channels - x.shape[-1]
    padded: Any = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [missing // 2, missing - missing // 2]])
    return padded


def _shortcut_b(x: Any, channels: int, stride: int, name: str) -> Any:
    return _convolve(x, channels, stride, name=f"{name}_skip", kernel=1)


def _batches(
    x: npt.NDArray[Any], y: npt.NDArray[Any], batch_size: int, shift: int, flip: bool, seed: int
) -> keras.utils.PyDataset:
    """Whole batches in a new order for each epoch. In NumPy, so that any backend of Keras can be fed."""
    import keras
    import numpy as np

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._random = np.random.default_rng(seed)
            self.on_epoch_end()

        def __len__(self) -> int:
            # A last batch of three examples would upset the statistics of the batch normalisation; the next order
            # has them elsewhere.
            return len(x) // batch_size

        def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
            chosen = self._order[index * batch_size : (index + 1) * batch_size]
            return _augment(x[chosen], shift, flip, self._random), y[chosen].astype("int32")

        def on_epoch_end(self) -> None:
            self._order = self._random.permutation(len(x))

    return Batches()


def _augment(images: npt.NDArray[Any], shift: int, flip: bool, random: np.random.Generator) -> npt.NDArray[Any]:
    import numpy as np

    count = len(images)
    if flip:
        mirrored = random.random(count) < 0.5
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    if shift:
        # One offset per batch would be cheaper, but then a batch is hardly more varied than one image.
        padded = np.pad(images, [(0, 0), (shift, shift), (shift, shift), (0, 0)])
        down, right = random.integers(0, 2 * shift + 1, (2, count, 1, 1))
        rows, columns = np.arange(images.shape[1])[:, None], np.arange(images.shape[2])
        images = padded[np.arange(count)[:, None, None], down + rows, right + columns]
    return images


def _progress_bar(keras: Any, epochs: int, steps: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("training"),
        BarColumn(bar_width=20),
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        TextColumn("{task.fields[scores]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,  # into a log file rich would write the last state only
    )
    task = bar.add_task("training", total=epochs * steps, epoch=0, scores="")

    def scores(logs: dict[str, float] | None) -> str:
        known = logs or {}
        test = f" (test {known['val_accuracy']:.3f})" if "val_accuracy" in known else ""
        return f"accuracy {known.get('accuracy', 0.0):.3f}{test}"

    def batch_ended(batch: int, logs: dict[str, float] | None = None) -> None:
        bar.update(task, advance=1)

    def epoch_ended(epoch: int, logs: dict[str, float] | None = None) -> None:
        bar.update(task, epoch=epoch + 1, scores=scores(logs))
        if not console.is_terminal:
            console.print(f"epoch {epoch + 1}/{epochs}  {scores(logs)}", highlight=False)

    return keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs=None: bar.start(),
        on_train_end=lambda logs=None: bar.stop(),
        on_train_batch_end=batch_ended,
        on_epoch_end=epoch_ended,
    )
