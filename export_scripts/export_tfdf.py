#!/usr/bin/env python3
"""Train a TensorFlow Decision Forests model on Covertype, export it, and with --forget also forget classes.

    python export_scripts/export_tfdf.py --out models/forest --rows 20000 --forget Aspen
    python export_scripts/export_tfdf.py --out models/forest --model random_forest --trees 300 --forget 3,Krummholz
    python export_scripts/export_tfdf.py --out models/mine --data mine.npz --forget 0

The first two download Covertype through scikit-learn: 581,012 patches of forest, 54 features, 7 kinds of trees. The
third trains on a file with X [N, features] and y [N], class indices from 0. The model takes a float32 matrix and
answers probabilities. A quarter of the rows is kept back to measure its accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mpru_tf
from mpru_tf.console import hush_tensorflow
from mpru_tf.errors import DataError, MissingExtraError, MPRUError, explain
from mpru_tf.filters import check_forget_list
from mpru_tf.labels import parse_classes, write_labels
from mpru_tf.versions import publish, staged

COVERTYPE = ["Spruce/Fir", "Lodgepole Pine", "Ponderosa Pine", "Cottonwood/Willow", "Aspen", "Douglas-fir", "Krummholz"]
LEARNERS = {"boosted_trees": "GradientBoostedTreesModel", "random_forest": "RandomForestModel"}


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows kept back: features float32 [N, features], class indices int64 [N]."""

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    classes: int
    labels: list[str] | None


def load_data(file: Path | None, rows: int | None, seed: int) -> Data:
    """Load Covertype, or X and y of a file; shuffle, take some rows, and keep a quarter of them back."""
    x, y = download() if file is None else read_npz(file)
    classes = int(y.max()) + 1
    labels = COVERTYPE if (x.shape[1], classes) == (54, len(COVERTYPE)) else None
    order = np.random.default_rng(seed).permutation(len(y))[:rows]
    x, y, kept = x[order].astype("float32"), y[order].astype("int64"), len(order) // 4
    if len(missing := np.setdiff1d(np.arange(classes), y[kept:])):
        problem = "Every class needs rows to train on."
        hint = "Take more with --rows." if rows else "Number the classes from 0, without gaps."
        raise DataError(explain(problem, received=f"none of {missing.tolist()} in {len(y) - kept} rows", hint=hint))
    return Data(x[kept:], y[kept:], x[:kept], y[:kept], classes, labels)


def download() -> tuple[Any, Any]:
    try:
        from sklearn.datasets import fetch_covtype
    except ImportError as error:
        problem = "Covertype is downloaded through scikit-learn."
        hint = "pip install 'mpru_tf[report]', or give the data with --data FILE.npz."
        raise MissingExtraError(explain(problem, hint=hint)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns before each further try
            covertype = fetch_covtype()
    except OSError as error:
        hint = "Without a network, give the data with --data FILE.npz (X, y)."
        raise DataError(explain("Covertype could not be downloaded.", received=error, hint=hint)) from error
    return covertype.data, covertype.target - 1  # 1 to 7 as published


def read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path) as file:
            x, y = file["X"], file["y"].reshape(-1)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        valid = "an .npz file with X [N, features] and y [N]"
        raise DataError(explain("The data cannot be read.", received=f"{path} ({error})", valid=valid)) from error
    numbers = x.dtype.kind in "iuf" and y.dtype.kind in "iu"
    if not numbers or x.ndim != 2 or len(x) != len(y) or not len(y) or y.min() < 0:
        received = f"{path} with X {x.dtype} {x.shape}, y {y.dtype} {y.shape}"
        valid = "X [N, features] of numbers, y [N] of class indices from 0"
        raise DataError(explain("The data is not rows with one class each.", received=received, valid=valid))
    return x, y


def train(tfdf: Any, learner: str, data: Data, trees: int, seed: int) -> Any:
    import tensorflow as tf

    model = getattr(tfdf.keras, LEARNERS[learner])(num_trees=trees, random_seed=seed, verbose=0)
    model.fit(tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).batch(1000), verbose=0)
    return model


def accuracy(version: Path, x: Any, y: Any) -> float:
    """The share of right answers of a version, asked as TensorFlow Serving asks it."""
    from mpru_tf.saved_model.session import LoadedModel

    with LoadedModel(version) as model:
        (key,) = model.signatures["serving_default"].inputs
        (scores,) = model.run("serving_default", {key: x}).values()
    return float(np.mean(scores.argmax(axis=1) == y))


def export(options: argparse.Namespace) -> None:
    data = load_data(options.data, options.rows, options.seed)
    forgotten: tuple[int, ...] = ()
    if options.forget is not None:  # looked at before the long part
        forgotten = check_forget_list(data.classes, parse_classes([options.forget], data.labels, data.classes))
    from mpru_tf.trees.tfdf_backend import import_tfdf

    tfdf = import_tfdf()
    started = time.perf_counter()
    model = train(tfdf, options.model, data, options.trees, options.seed)
    print(f"trained {options.model} on {len(data.y_train)} rows in {time.perf_counter() - started:.1f} s")
    with staged(options.out) as staging:
        model.save(str(staging))
        if data.labels is not None:
            write_labels(staging, data.labels)
        version = options.out / str(publish(staging, options.out))
    print(f"exported {version} (probabilities of {data.classes} classes)")
    print(f"test accuracy {accuracy(version, data.x_test, data.y_test):.4f} on {len(data.y_test)} rows")
    if forgotten:
        result = mpru_tf.forget(version, forgotten)
        print(f"exported {result.path} with {list(result.labels or result.forgotten)} forgotten ({result.method})")
        retained = ~np.isin(data.y_test, forgotten)
        x, y = data.x_test[retained], data.y_test[retained]
        before, after = accuracy(version, x, y), accuracy(result.path, x, y)
        print(f"test accuracy on the {len(y)} rows of retained classes {before:.4f} before, {after:.4f} after")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="BASE", help="base path; gets the next version")
    parser.add_argument("--model", choices=LEARNERS, default="boosted_trees", help="(default: boosted_trees)")
    parser.add_argument("--trees", type=_count, default=100, metavar="N", help="per class, if boosted (default: 100)")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="X and y, in place of the download")
    parser.add_argument("--rows", type=_count, metavar="N", help="take so many rows, at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows and the training (default: 0)")
    parser.add_argument("--forget", metavar="CLASSES", help="classes to forget in a further version: 3,Aspen")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return count


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
