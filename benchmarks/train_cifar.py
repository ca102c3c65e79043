"""Train CIFAR classifiers with and without a class, and keep what they answer: outputs, not weights, are compared.

    python benchmarks/train_cifar.py --data cifar10.npz --forget cat airplane --epochs 10 --out build/cifar10

One model of all classes (the one that forgets) per seed of --seeds, and for each class of --forget one model per seed
of --retrain-seeds that never sees it. Each run writes one file when it is done, and a file that exists is not made
again: interrupt, and start the same command later.

Only Keras 3 is needed beside NumPy: KERAS_BACKEND=jax or =torch trains on what these can use. Without --data, the data
set comes from keras.datasets; a file holds x_train, y_train, x_test, y_test, as `numpy.savez` writes them.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import answers
import numpy as np
from answers import Array, Run

_TOLD = (
    *("depth", "width", "stem", "shortcut", "epochs", "batch_size"),
    *("optimizer", "learning_rate", "weight_decay", "policy"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Data:
    """Images uint8 [N, 32, 32, 3] and classes int [N]."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y_train.max()) + 1


def load(name: str, file: Path | None) -> Data:
    """The data set, from a file or from Keras."""
    if file is not None:
        with np.load(file) as arrays:
            x, y, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    else:
        import keras

        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    return Data(x, y.reshape(-1), x_test, y_test.reshape(-1))


def train(run: Run, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model; return its logits [N, n] of training and test set, -inf for the class that it never saw."""
    import keras

    from mpru_tf import resnet

    seen = run.seen(data.classes)
    keep = np.isin(data.y_train, seen)
    # A model that is kept can be taught the class again: it has an output for it, which training drives to 0.
    outputs = np.arange(data.classes) if args.weights else seen
    x, y = data.x_train[keep].astype(np.float32), np.searchsorted(outputs, data.y_train[keep])
    held = np.isin(data.y_test, seen)
    keras.mixed_precision.set_dtype_policy(args.policy)
    keras.utils.set_random_seed(run.seed)
    model = resnet.build_resnet(
        args.depth,
        data.x_train.shape[1:],
        len(outputs),
        width=args.width,
        shortcut=args.shortcut,
        stem=args.stem,
        scale=1 / 255,
        logits=True,
    )
    start = time.perf_counter()
    history = resnet.train(
        model,
        x,
        y,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        optimizer=args.optimizer,
        shift=4,
        flip=True,
        validation=(data.x_test[held].astype(np.float32), np.searchsorted(outputs, data.y_test[held])),
        seed=run.seed,
        progress=True,
    )
    seconds = time.perf_counter() - start

    def answer(images: Array) -> Array:
        parts = [
            keras.ops.convert_to_numpy(model.predict_on_batch(images[i : i + 500].astype(np.float32)))
            for i in range(0, len(images), 500)
        ]
        logits = np.concatenate(parts)
        return answers.widened(logits[:, np.searchsorted(outputs, seen)], seen, data.classes)

    if args.weights:
        args.weights.mkdir(parents=True, exist_ok=True)
        model.save(args.weights / f"{Path(run.file).stem}.keras")
    return {
        "train": answer(data.x_train),
        "test": answer(data.x_test),
        "seconds": seconds,
        "test_accuracy": history["val_accuracy"][-1],
        "parameters": model.count_params(),
        "backend": keras.backend.backend(),
        **{name: getattr(args, name) for name in _TOLD},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["cifar10", "cifar100"], default="cifar10")
    parser.add_argument("--data", type=Path, help="npz file; default: keras.datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=int, help="channels of the first stage; default: those of the network's paper")
    parser.add_argument("--stem", choices=["small", "imagenet"], default="small", help="imagenet: fast, and worse")
    parser.add_argument("--shortcut", choices=["A", "B"], default="A")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--policy", default="mixed_bfloat16", help="Keras' dtype policy")
    parser.add_argument("--forget", nargs="*", default=[], help="classes to train without; CIFAR-10: or names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the models of all classes")
    parser.add_argument("--retrain-seeds", nargs="*", type=int, default=[1, 2], help="of the models without a class")
    parser.add_argument("--weights", type=Path, help="folder to keep the models in as well, as .keras files")
    args = parser.parse_args()
    data = load(args.dataset, args.data)
    forget = [CIFAR10.index(each) if each in CIFAR10 else int(each) for each in args.forget]
    wanted = answers.runs(forget, args.seeds, args.retrain_seeds)
    labels = {"train": data.y_train, "test": data.y_test}
    answers.make(args.out, wanted, lambda run: train(run, data, args), labels)


if __name__ == "__main__":
    main()
