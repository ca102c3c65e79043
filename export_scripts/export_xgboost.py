#!/usr/bin/env python3
"""Export an XGBoost classifier as a servable version; with --forget, only with these classes forgotten.

    python export_scripts/export_xgboost.py --out models/cover --rows 50000 --trees 50 --forget Krummholz
    python export_scripts/export_xgboost.py --out models/cover --data covtype.npz --trees 100 --depth 10
    python export_scripts/export_xgboost.py --out models/mine --model model.json --forget 2

The first line trains on Covertype, which scikit-learn downloads. The second reads the data from a file instead: X
[N, features] and y [N], classes from 0. The third trains nothing and needs neither data nor XGBoost; with --data it
also reports the accuracy on that data.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mpru_tf
from mpru_tf.console import hush_tensorflow
from mpru_tf.errors import DataError, MissingExtraError, MPRUError, explain
from mpru_tf.trees.xgboost_model import read_xgboost

COVERTYPE = ["Spruce/Fir", "Lodgepole Pine", "Ponderosa Pine", "Cottonwood/Willow", "Aspen", "Douglas-fir", "Krummholz"]
TEST_ROWS = 20_000


def load_data(data: Path | None, rows: int | None, seed: int) -> tuple[Any, Any]:
    """X float32 [N, features] and y int [N], shuffled, so that the first ``rows`` of them are like all the others."""
    x, y = read_npz(data) if data is not None else download()
    order = np.random.default_rng(seed).permutation(len(x))[:rows]
    return x[order].astype("float32"), y[order].astype("int64")


def read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path) as file:
            x, y = file["X"], file["y"].reshape(-1)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        valid = "an .npz file with X [N, features] and y [N]"
        raise DataError(explain("The data cannot be read.", received=f"{path} ({error})", valid=valid)) from error
    if x.ndim != 2 or len(x) != len(y) or len(x) < 8:
        valid = "X [N, features] and y [N], 8 rows or more"
        raise DataError(explain("The data does not fit.", received=f"X {x.shape}, y {y.shape}", valid=valid))
    return x, y


def download() -> tuple[Any, Any]:
    try:
        from sklearn.datasets import fetch_covtype
    except ImportError as error:
        message = explain("scikit-learn downloads the data.", hint="pip install 'mpru_tf[report]', or give --data.")
        raise MissingExtraError(message) from error
    try:
        x, y = fetch_covtype(return_X_y=True)
    except OSError as error:
        hint = "Without a network, give the same arrays with --data FILE.npz (X, y)."
        raise DataError(explain("Covertype could not be downloaded.", received=error, hint=hint)) from error
    return x, y - 1


def train(x: Any, y: Any, trees: int, depth: int, seed: int) -> bytes:
    """Boost ``trees`` rounds, each with one tree per class, and return the model as XGBoost would save it."""
    try:
        import xgboost
    except ImportError as error:
        hint = "pip install 'mpru_tf[trees]', or give a model with --model."
        raise MissingExtraError(explain("XGBoost trains the model.", hint=hint)) from error
    parameters = {
        "objective": "multi:softprob",
        "num_class": int(y.max()) + 1,
        "max_depth": depth,
        "eta": 0.3,
        "seed": seed,
    }
    booster = xgboost.train(parameters, xgboost.DMatrix(x, label=y), num_boost_round=trees)
    return bytes(booster.save_raw("json"))


def accuracy(probabilities: Any, y: Any, forgotten: Sequence[int]) -> float:
    """How often the likeliest class is right, on rows whose class is retained."""
    retained = ~np.isin(y, forgotten)
    return float(np.mean(probabilities[retained].argmax(axis=1) == y[retained]))


def served(version: Path, x: Any) -> Any:
    """What TensorFlow Serving would answer."""
    from mpru_tf.saved_model.session import LoadedModel

    with LoadedModel(version) as model:
        return model.run("serving_default", {"features": x})["probabilities"]


def export(options: argparse.Namespace) -> None:
    x = y = np.zeros((0, 0))
    if options.model is None or options.data is not None:
        x, y = load_data(options.data, options.rows, options.seed)
    test = len(x) if options.model is not None else min(TEST_ROWS, len(x) // 4)
    model = options.model or train(x[test:], y[test:], options.trees, options.depth, options.seed)
    forest = read_xgboost(model)
    is_covertype = (forest.n_features, forest.classes) == (54, 7)
    result = mpru_tf.convert_xgboost(
        model,
        options.out,
        labels=options.labels or (COVERTYPE if is_covertype else None),
        forget=() if options.forget is None else options.forget,
    )
    print(f"exported {result.path}: {result.trees} trees, {result.classes} classes; {result.self_check['detail']}")
    forgotten = result.forgotten.forgotten if result.forgotten is not None else ()
    if result.forgotten is not None:
        print(f"forgotten: {list(result.forgotten.labels or forgotten)} ({result.forgotten.method})")
    if test:
        x, y = x[: min(test, TEST_ROWS)], y[: min(test, TEST_ROWS)]
        before, after = accuracy(forest.probabilities(x), y, forgotten), accuracy(served(result.path, x), y, forgotten)
        print(f"accuracy on {len(x)} rows, retained classes: {before:.4f} of the model, {after:.4f} as exported")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="BASE", help="base path; gets the next version")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a model that XGBoost saved: train nothing")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="X and y, in place of the download")
    parser.add_argument("--rows", type=int, metavar="N", help="use only so many rows of the data (default: all)")
    parser.add_argument("--trees", type=int, default=100, metavar="N", help="trees per class (default: 100)")
    parser.add_argument("--depth", type=int, default=6, metavar="N", help="of each tree (default: 6)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffling and of XGBoost (default: 0)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels of the classes; Covertype's are known")
    parser.add_argument("--forget", metavar="CLASSES", help="classes to forget, indices or labels: 3,Aspen")
    return parser.parse_args(arguments)


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
