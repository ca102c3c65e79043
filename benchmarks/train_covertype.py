"""Train XGBoost on Covertype with and without each class, and keep what the models answer.

    python benchmarks/train_covertype.py --data covtype.npz --out build/covertype

The full data set, four fifths of each class for training. Seeds decide which rows and features each tree sees. Each
training writes one file when it is done, and a file that exists is not made again. Without --data, scikit-learn
downloads the data set; a file holds X [N, 54] and y [N], classes from 0.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import answers
import numpy as np
from answers import Array, Run

CLASSES = 7


def load(file: Path | None) -> tuple[Array, Array]:
    """Features float32 [N, 54] and classes int [N]."""
    if file is not None:
        with np.load(file) as data:
            return data["X"].astype(np.float32), data["y"].astype(np.int64)
    from sklearn.datasets import fetch_covtype

    x, y = fetch_covtype(return_X_y=True)
    return x.astype(np.float32), y.astype(np.int64) - 1


def split(y: Array) -> tuple[Array, Array]:
    """Indices of the training and of the test rows."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    return np.sort(train), np.sort(test)


def train(run: Run, x: Array, y: Array, rows: tuple[Array, Array], args: argparse.Namespace) -> dict[str, Any]:
    """Train one model; return its log-probabilities [N, n] of training and test set."""
    import xgboost

    seen = run.seen(CLASSES)
    own = rows[0][np.isin(y[rows[0]], seen)]
    settings = {
        "objective": "multi:softprob",
        "num_class": len(seen),
        "max_depth": args.depth,
        "tree_method": "hist",
        "eta": 0.3,
        "subsample": 0.8,
        "colsample_bytree": 0.8,
        "seed": run.seed,
    }
    if args.threads:
        settings["nthread"] = args.threads
    start = time.perf_counter()
    booster = xgboost.train(settings, xgboost.DMatrix(x[own], np.searchsorted(seen, y[own])), args.trees)
    seconds = time.perf_counter() - start

    def answer(which: Array) -> Array:
        margins = booster.predict(xgboost.DMatrix(x[which]), output_margin=True)
        return answers.widened(margins, seen, CLASSES)

    test = answer(rows[1])
    known = np.isin(y[rows[1]], seen)
    return {
        "train": answer(rows[0]),
        "test": test,
        "seconds": seconds,
        "test_accuracy": float(np.mean(test.argmax(-1)[known] == y[rows[1]][known])),
        "trees": args.trees,
        "depth": args.depth,
        "xgboost": xgboost.__version__,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="npz file; default: scikit-learn's download")
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--trees", type=int, default=100, help="per class")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--forget", nargs="*", type=int, default=list(range(CLASSES)), help="classes to train without")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the models of all classes")
    parser.add_argument("--retrain-seeds", nargs="*", type=int, default=[3, 4, 5], help="of those without a class")
    args = parser.parse_args()
    x, y = load(args.data)
    rows = split(y)
    wanted = answers.runs(args.forget, args.seeds, args.retrain_seeds)
    labels = {"train": y[rows[0]], "test": y[rows[1]]}
    answers.make(args.out, wanted, lambda run: train(run, x, y, rows, args), labels)


if __name__ == "__main__":
    main()
