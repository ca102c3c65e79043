#!/usr/bin/env python3
"""Export a CIFAR-style ResNet as a servable version; with --forget, also its next version with classes forgotten.

With --unsir, the classes are unlearned in the weights first, and only that model is exported.

    python export_scripts/export_resnet.py --dataset digits --depth 20 --epochs 20 --out models/digits
    python export_scripts/export_resnet.py --dataset cifar10 --epochs 60 --out models/cifar10 --forget cat
    python export_scripts/export_resnet.py --dataset cifar10 --weights r20.keras --out models/r20 --forget cat
    python export_scripts/export_resnet.py --dataset digits --out models/digits --unsir 3 --then-filter tempered

The first line trains on the digits that ship with scikit-learn. The second downloads CIFAR-10 through Keras. The third
trains and downloads nothing: it exports the model in the .keras file as it is, with CIFAR-10's labels; with --data
FILE.npz it also reports the accuracy on that data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mpru_tf
from mpru_tf.array_files import read_arrays
from mpru_tf.console import hush_tensorflow
from mpru_tf.errors import DataError, LabelsError, MissingExtraError, ModelError, MPRUError, explain
from mpru_tf.filters import check_forget_list
from mpru_tf.labels import parse_classes, read_labels
from mpru_tf.resnet import answers_logits, build_resnet, export_version, train
from mpru_tf.unlearning.config import Preset
from mpru_tf.unlearning.places import check_folder
from mpru_tf.unlearning.publishing import (
    FILTERS,
    check_classes_stay_gone,
    check_retained,
    publish_unlearned,
    remarks,
)
from mpru_tf.unlearning.reading import read_keras
from mpru_tf.versions import target_base_path

CIFAR10_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LABELS = {"cifar10": CIFAR10_LABELS, "digits": [str(digit) for digit in range(10)]}
KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Data:
    """Images [N, height, width, channels] and class indices [N]; what to multiply pixels with; labels if known."""

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    scale: float
    labels: list[str] | None = None
    flip: bool = False  # whether a mirrored image is still of its class

    @property
    def classes(self) -> int:
        return len(self.labels) if self.labels else int(max(self.y_train.max(), self.y_test.max(initial=0))) + 1


def load_data(dataset: str, data: Path | None) -> Data:
    """Load ``digits``, ``cifar10``, ``cifar100`` or an .npz file; ``data`` is read in place of a download."""
    labels = LABELS.get(dataset)
    if dataset not in ("digits", "cifar10", "cifar100"):
        data = data or Path(dataset)
    if data is not None:
        arrays = read_npz(data)
    elif dataset == "digits":
        arrays = load_digits()
    else:
        arrays = download(dataset)
    x_train, y_train, x_test, y_test = arrays
    scale = 1.0 if x_train.max() <= 1 else 1 / 16 if dataset == "digits" else 1 / 255
    return Data(x_train, y_train, x_test, y_test, scale, labels, flip=dataset.startswith("cifar"))


def read_npz(path: Path) -> tuple[Any, Any, Any, Any]:
    valid = "digits, cifar10, cifar100, or an .npz file with x_train, y_train and, if there are any, x_test, y_test"
    found = read_arrays(path, valid, KEYS)
    if "x_train" not in found or "y_train" not in found:
        raise DataError(
            explain("The data has no training examples.", received=f"{path} with {sorted(found)}", valid=list(KEYS))
        )
    x_train, y_train = found["x_train"], found["y_train"].reshape(-1)
    if x_train.ndim != 4 or len(x_train) != len(y_train) or not len(x_train):
        received = f"{path} with x_train {x_train.shape}, y_train {y_train.shape}"
        valid = "x_train [N, height, width, channels], y_train [N]"
        raise DataError(explain("The data is not images with one class each.", received=received, valid=valid))
    return x_train, y_train, found.get("x_test", x_train[:0]), found.get("y_test", y_train[:0]).reshape(-1)


def load_digits() -> tuple[Any, Any, Any, Any]:
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise MissingExtraError(
            explain("The digits data ships with scikit-learn.", hint="pip install 'mpru_tf[report]'")
        ) from error
    digits = datasets.load_digits()
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        digits.images[..., np.newaxis], digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    return x_train, y_train, x_test, y_test


def download(dataset: str) -> tuple[Any, Any, Any, Any]:
    import keras

    source = {"cifar10": keras.datasets.cifar10, "cifar100": keras.datasets.cifar100}[dataset]
    try:
        (x_train, y_train), (x_test, y_test) = source.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise DataError(
            explain(
                f"{dataset} could not be downloaded.",
                received=" ".join(str(error).split()),
                hint="Without a network, give the same arrays with --data FILE.npz (x_train, y_train, x_test, y_test).",
            )
        ) from error
    return x_train, y_train.reshape(-1), x_test, y_test.reshape(-1)


def load_model(weights: Path, depth: int, data: Data | None) -> Any:
    """Load a whole .keras model as it is, or put .weights.h5 into a ResNet that fits the data."""
    valid = "a whole model FILE.keras, or FILE.weights.h5 of the ResNet that --depth and --dataset describe"
    if not weights.name.endswith(".weights.h5"):
        return read_keras(weights, valid)
    if data is None:
        raise ModelError(explain("Weights alone do not say what they classify.", hint="Give --dataset as well."))
    model = build_resnet(depth, data.x_train.shape[1:], data.classes, scale=data.scale)
    try:
        model.load_weights(weights)
    except (KeyError, OSError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(
            explain("The weights cannot be loaded.", received=f"{weights} ({reason})", valid=valid)
        ) from error
    return model


def downloads(options: argparse.Namespace) -> bool:
    """Whether the data set would come over the network."""
    return options.data is None and options.dataset in ("cifar10", "cifar100")


def normalized(x: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> Any:
    """What a model loaded with --weights takes: the pixels as they are or, with --mean and --std, normalised."""
    x = x.astype("float32")
    return x if mean is None or std is None else (x / 255 - np.float32(mean)) / np.float32(std)


def accuracy(model: Any, x: Any, y: Any) -> float:
    scores = model.predict(x, batch_size=256, verbose=0)
    return float(np.mean(np.argmax(scores, axis=-1) == y))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="BASE", help="base path; gets the next version")
    parser.add_argument("--depth", type=int, choices=(18, 20, 56), default=20, help="layers (default: 20)")
    parser.add_argument("--dataset", metavar="NAME|FILE.npz", help="digits, cifar10, cifar100, or a file")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="arrays of the data set, in place of a download")
    parser.add_argument("--weights", type=Path, help="a whole model (.keras) or .weights.h5: load it, train nothing")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training data (default: 30)")
    parser.add_argument("--seed", type=_seed, default=0, help="of weights, order and augmentation (default: 0)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels of the classes, .txt or .json")
    parser.add_argument("--mean", type=_channels, metavar="R,G,B", help="the model of --weights takes (x/255-mean)/std")
    parser.add_argument("--std", type=_channels, metavar="R,G,B", help="see --mean")
    parser.add_argument("--forget", metavar="CLASSES", help="classes to forget in a further version: 3,cat")
    parser.add_argument("--unsir", metavar="CLASSES", help="classes to unlearn in the weights, in place of --forget")
    parser.add_argument(
        "--preset", choices=[each.value for each in Preset], default="gentle", help="settings of --unsir"
    )
    parser.add_argument("--retained-floor", type=float, metavar="SHARE", help="of --unsir; see `mpru-tf unsir --help`")
    parser.add_argument("--then-filter", choices=FILTERS, help="also filter the answers of what --unsir made")
    options = parser.parse_args(arguments)
    if options.unsir is not None and options.forget is not None:
        parser.error("--unsir and --forget both say what to forget; --then-filter adds the filter")
    if options.then_filter is not None and options.unsir is None:
        parser.error("--then-filter goes with --unsir")
    if options.weights is None and options.dataset is None and options.data is None:
        parser.error("one of --dataset, --data and --weights says what to export")
    if (options.mean is None) != (options.std is None):
        parser.error("--mean and --std go together")
    return options


def _channels(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{seed} is not in 0 to {2**32 - 1}")
    return seed


def unlearn(
    options: argparse.Namespace, model: Any, data: Data, labels: list[str] | None, forgotten: Sequence[int]
) -> None:
    """Unlearn classes with the data of the others, and publish the outcome."""
    x, x_test = (normalized(each, options.mean, options.std) for each in (data.x_train, data.x_test))
    keep = ~np.isin(data.y_train, forgotten)
    result = mpru_tf.unsir(
        model,
        [f"index:{index}" for index in forgotten],
        (x[keep], data.y_train[keep]),
        settings(options),
        validation=(x_test, data.y_test) if len(x_test) else None,
        in_place=True,
        progress=True,
    )
    for name, found in (("before", result.before), ("after", result.after)):
        gone = "" if found.forgotten is None else f", on {list(forgotten)} {found.forgotten:.4f}"
        print(f"{name} unlearning: accuracy on the classes that stay {found.retained:.4f}{gone}")
    check_retained(result)
    published = publish_unlearned(
        result, options.out, x[:8], labels=labels, source=options.weights, then_filter=options.then_filter
    )
    print(f"exported {published.path} with {list(forgotten)} unlearned ({options.then_filter or 'no filter'})")
    for remark in remarks(result, options.then_filter):
        print(f"warning: {remark}", file=sys.stderr)


def settings(options: argparse.Namespace) -> mpru_tf.UnsirConfig:
    """Those of UNSIR."""
    return Preset(options.preset).config(seed=options.seed, retained_floor=options.retained_floor)


def export(options: argparse.Namespace) -> None:
    import keras

    check_folder(target_base_path(options.out), "the new version")
    given = options.dataset or (str(options.data) if options.data else None)
    whole = options.weights is not None and not options.weights.name.endswith(".weights.h5")
    # A whole model needs no data: nothing is downloaded for the sake of its accuracy.
    data = load_data(given, options.data) if given and not (whole and downloads(options)) else None
    labels = read_labels(options.labels) if options.labels else data.labels if data else LABELS.get(given or "")
    if options.unsir is not None:
        settings(options)
        if data is None:
            raise DataError(explain("UNSIR takes examples of the classes that stay.", hint="Give --data as well."))
    keras.utils.set_random_seed(options.seed)
    if options.weights is not None:
        model = load_model(options.weights, options.depth, data)
    else:
        assert data is not None
        model = build_resnet(options.depth, data.x_train.shape[1:], data.classes, scale=data.scale)
    classes = int(model.outputs[0].shape[-1])
    if labels is not None and len(labels) != classes:
        raise LabelsError(
            explain("The labels do not fit the model.", received=f"{len(labels)} labels for {classes} classes")
        )
    unlearned: tuple[int, ...] = ()
    if options.unsir is not None:  # whatever can be refused is refused before minutes are spent
        unlearned = check_forget_list(classes, parse_classes([options.unsir], labels, classes))
        check_classes_stay_gone(options.out, unlearned, options.then_filter)
    if options.weights is None:
        assert data is not None
        started = time.perf_counter()
        train(
            model,
            data.x_train.astype("float32"),
            data.y_train,
            epochs=options.epochs,
            shift=max(1, data.x_train.shape[1] // 8),
            flip=data.flip,
            seed=options.seed,
            progress=True,
        )
        print(f"trained ResNet-{options.depth} in {time.perf_counter() - started:.1f} s")
    if data is not None and len(data.x_test):
        x = normalized(data.x_test, options.mean, options.std)
        print(f"test accuracy {accuracy(model, x, data.y_test):.4f} on {len(x)} examples")
    elif data is None and given:
        print("test accuracy not measured: that takes the data, as --data FILE.npz")
    if unlearned:
        assert data is not None
        unlearn(options, model, data, labels, unlearned)
        return
    version = export_version(model, options.out, labels)
    print(f"exported {version} ({'logits' if answers_logits(model) else 'probabilities'} of {classes} classes)")
    if options.forget is not None:
        result = mpru_tf.forget(version, classes=[options.forget])
        print(f"exported {result.path} with {list(result.labels or result.forgotten)} forgotten ({result.method})")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    hush_tensorflow()
    try:
        export(options)
    except MPRUError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
