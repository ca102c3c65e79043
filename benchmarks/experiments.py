"""Does a filtered model answer as one that never saw the class? The three experiments of the MPRU paper, repeated.

    python benchmarks/experiments.py covertype --data covtype.npz --answers build/covertype
    python benchmarks/experiments.py cifar10 --data cifar10.npz --answers build/cifar10 [--depth 20 --epochs 10]
    python benchmarks/experiments.py cifar100 --answers build/cifar100

Models are trained with and without a class (benchmarks/train_covertype.py, benchmarks/train_cifar.py: what has a file
of answers already is not trained again; --no-training takes what is there). Every class is then forgotten by every
method in what the models of all classes answer, and held against the models that never saw it, on the test set. The
floor is how far two of those are from each other: they differ by their seed alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import figures
import numpy as np
from answers import Array, Run, probabilities
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mpru_tf.class_means import ClassMeans
from mpru_tf.evaluation import attacks, metrics
from mpru_tf.evaluation.baselines import NAMES, Rule, baseline_rules, logit_class_means
from mpru_tf.filters import METHODS, make_filter

HERE = Path(__file__).resolve().parent
EXPERIMENTS = {
    # What is forgotten, by which training, and the MSE bound that the paper gives for 72 % of all points.
    "covertype": (range(7), "train_covertype.py", [], 0.013),
    "cifar10": (range(10), "train_cifar.py", ["--dataset", "cifar10"], 0.0145),
    "cifar100": ((53, *range(0, 90, 10)), "train_cifar.py", ["--dataset", "cifar100"], 0.0017),
}
console = Console(stderr=True, highlight=False)
MOST_ROWS = 20_000  # for the attacks, of each side
MOST_PER_SIDE = 3_000  # for the regression of the attack on the nearest class


@dataclass(frozen=True)
class Trained:
    """All answers of one experiment, by run."""

    y_train: Array
    y_test: Array
    train: dict[Run, Array]
    test: dict[Run, Array]
    told: dict[Run, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """Read a folder of answers."""
        with np.load(folder / "labels.npz") as labels:
            y_train, y_test = labels["train"], labels["test"]
        train, test, told = {}, {}, {}
        for path in track(sorted(folder.glob("*-seed-*.npz")), "reading answers", console=console):
            with np.load(path) as file:
                run = Run.of_file(path.name)
                train[run], test[run] = file["train"], file["test"]
                told[run] = {key: file[key].item() for key in file.files if key not in ("train", "test")}
        return cls(y_train, y_test, train, test, told)

    def of_all(self) -> list[Run]:
        """The runs with all classes."""
        return [run for run in self.test if run.without is None]

    def without(self, c: int) -> list[Run]:
        """The runs that never saw a class."""
        return [run for run in self.test if run.without == c]

    def classes(self) -> list[int]:
        """The classes that two or more runs never saw."""
        return [c for c in range(self.n) if len(self.without(c)) > 1]

    @property
    def n(self) -> int:
        """The number of classes."""
        return int(self.y_train.max()) + 1


# ----------------------------------------------------------------------------------------------------------- distances
def methods_of(trained: Trained, original: Run, c: int) -> dict[str, Rule]:
    """What each method makes of probabilities [N, n]; class means come from the training set."""
    p_train = probabilities(trained.train[original])
    means = ClassMeans.from_outputs(p_train, trained.y_train)
    rules, left_out = baseline_rules(trained.n, [c], means, logit_class_means(p_train, trained.y_train, trained.n))
    for method in left_out.keys() & set(METHODS):  # means that cannot be trusted: measured all the same
        rules[method] = make_filter(trained.n, [c], method, class_means=means).probabilities
    return {name: rules[name] for name in NAMES}


def compare(answered: Array, retrained: list[Array], y: Array, c: int, bound: float) -> dict[str, float]:
    """How far answers are from those of models that never saw class ``c``: means over those models."""
    sides = {"retained": y != c, "forgotten": y == c}
    shown: dict[str, list[float]] = {}
    for other in retrained:
        for side, rows in sides.items():
            seen = metrics.distance(answered[rows], other[rows])
            for name in ("kl", "kl_reverse", "js", "tv", "mse", "agreement"):
                shown.setdefault(f"{name}_{side}", []).append(getattr(seen, name))
        squares = metrics.mse(answered, other)
        shown.setdefault("mse_within_bound", []).append(metrics.share_within(squares, bound))
        shown.setdefault("mse_72", []).append(metrics.quantiles(squares, [0.72])["0.72"])
        rows = sides["retained"]
        difference = abs(metrics.accuracy(answered[rows], y[rows]) - metrics.accuracy(other[rows], y[rows]))
        shown.setdefault("accuracy_difference_retained", []).append(difference)
    result = {name: statistics.fmean(values) for name, values in shown.items()}
    rows = sides["retained"]
    result["accuracy_retained"] = metrics.accuracy(answered[rows], y[rows])
    result["accuracy_forgotten"] = metrics.accuracy(answered[~rows], y[~rows])
    result["calibration_error_retained"] = metrics.calibration_error(answered[rows], y[rows])
    return result


def attack(on_train: Array, on_test: Array, trained: Trained, c: int, nearest: int) -> dict[str, float]:
    """Can examples of class ``c`` be told: those of the training set from others, and its own from its neighbour's?"""
    random = np.random.default_rng(0)

    def some(rows: Array, most: int) -> Array:
        return rows if len(rows) <= most else random.choice(rows, most, replace=False)

    members = some(np.flatnonzero(trained.y_train == c), MOST_ROWS)
    others = some(np.flatnonzero(trained.y_test == c), MOST_ROWS)
    inside = attacks.signals(on_train[members], trained.y_train[members], [c])
    outside = attacks.signals(on_test[others], trained.y_test[others], [c])
    found = {f"membership_{name}": attacks.auc(inside[name], outside[name]) for name in inside}
    retained = [each for each in range(trained.n) if each != c]
    pair = np.concatenate([some(np.flatnonzero(trained.y_test == each), MOST_PER_SIDE) for each in (c, nearest)])
    found["nearest_class"] = attacks.recognise(on_test[pair], trained.y_test[pair], c, retained, nearest).auc
    return found


def measure_class(trained: Trained, c: int, bound: float) -> dict[str, Any]:
    """Everything about one forgotten class."""
    y = trained.y_test
    retrained = {run: probabilities(trained.test[run]) for run in trained.without(c)}
    floors = [
        compare(one, [other], y, c, bound) for a, one in retrained.items() for b, other in retrained.items() if a != b
    ]
    retained = [each for each in range(trained.n) if each != c]
    nearest = attacks.nearest_class(np.mean(list(retrained.values()), axis=0), y, c, retained)
    of_retrained = [attack(probabilities(trained.train[run]), p, trained, c, nearest) for run, p in retrained.items()]
    result: dict[str, Any] = {
        "nearest": nearest,
        "floor": _mean(floors),
        "retrained": {
            **_mean(of_retrained),
            "seconds": statistics.fmean(trained.told[r]["seconds"] for r in retrained),
        },
        "methods": {},
    }
    per_seed: dict[str, list[dict[str, float]]] = {}
    for original in trained.of_all():
        on_train, on_test = probabilities(trained.train[original]), probabilities(trained.test[original])
        for name, method in methods_of(trained, original, c).items():
            seen = compare(method(on_test), list(retrained.values()), y, c, bound)
            seen |= attack(method(on_train), method(on_test), trained, c, nearest)
            per_seed.setdefault(name, []).append(seen)
    for name, values in per_seed.items():
        seen = _mean(values)
        for side in ("retained", "forgotten"):
            seen[f"excess_{side}"] = seen[f"kl_{side}"] - result["floor"][f"kl_{side}"]
        gaps = {key: abs(seen[key] - result["retrained"][key]) for key in seen if key in result["retrained"]}
        seen["gap_membership"] = max(gap for key, gap in gaps.items() if key.startswith("membership_"))
        seen["gap_nearest_class"] = gaps["nearest_class"]
        result["methods"][name] = seen
    return result


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(each[key] for each in values) for key in values[0]}


def summary(classes: dict[str, Any]) -> dict[str, Any]:
    """Means over the forgotten classes, and their standard errors; None where there is one class only."""

    def over(parts: list[dict[str, float]]) -> dict[str, Any]:
        return {
            key: {
                "mean": statistics.fmean(part[key] for part in parts),
                "error": statistics.stdev([part[key] for part in parts]) / len(parts) ** 0.5
                if len(parts) > 1
                else None,
            }
            for key in parts[0]
        }

    each = list(classes.values())
    return {
        "floor": over([c["floor"] for c in each]),
        "retrained": over([c["retrained"] for c in each]),
        "methods": {name: over([c["methods"][name] for c in each]) for name in each[0]["methods"]},
    }


# ------------------------------------------------------------------------------------------------------------- runtime
def runtime(trained: Trained, c: int, rounds: int = 30) -> dict[str, float]:
    """Seconds that our filter takes for the test set, baked into a graph, and a masked softmax in NumPy, in turns.

    One thread each: NumPy's softmax has one. Both take the logits of the whole test set as one batch.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    from mpru_tf.layer import MPRULayer

    logits = np.where(np.isfinite(z := trained.test[trained.of_all()[0]]), z, -1e30).astype(np.float32)
    layer = MPRULayer(c, trained.n, logits=True)
    graph = tf.Graph()
    with graph.as_default():
        given = tf.compat.v1.placeholder(tf.float32, [None, trained.n])
        shown = tf.nn.softmax(layer(given))
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    # In the thread that calls: handing a request to a pool and waiting for it is no work of the filter's.
    options = config_pb2.CallableOptions(
        feed=[given.name], fetch=[shown.name], run_options=tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
    )
    with tf.compat.v1.Session(graph=graph, config=config) as session:
        call = session._make_callable_from_options(options)

        def masked_softmax(x: Array) -> Array:
            x = x.copy()
            x[:, c] = -np.inf
            e = np.exp(x - x.max(axis=1, keepdims=True))
            return np.asarray(e / e.sum(axis=1, keepdims=True))

        taken: dict[str, list[float]] = {"filter_seconds": [], "masked_softmax_seconds": []}
        for number in range(rounds + 3):
            for name, function in (("filter_seconds", call), ("masked_softmax_seconds", masked_softmax)):
                start = time.perf_counter()
                function(logits)
                if number >= 3:
                    taken[name].append(time.perf_counter() - start)
    pairs = zip(taken["filter_seconds"], taken["masked_softmax_seconds"], strict=True)
    return {
        **{name: statistics.median(values) for name, values in taken.items()},
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "rows": len(logits),
    }


# ------------------------------------------------------------------------------------------------------------- command
def show(result: dict[str, Any]) -> None:
    """Print the table."""
    shown = Console()
    table = Table(title=f"{result['experiment']}: mean over classes {', '.join(result['classes'])}, nats")
    names = (
        "kl_retained",
        "kl_forgotten",
        "excess_retained",
        "excess_forgotten",
        "gap_membership",
        "gap_nearest_class",
    )
    for heading in (
        "answers",
        "KL retained",
        "KL forgotten",
        "excess",
        "excess",
        "membership gap",
        "nearest class gap",
    ):
        table.add_column(heading, justify="left" if heading == "answers" else "right")
    rows = {
        "two seeds of retraining": result["mean"]["floor"] | result["mean"]["retrained"],
        **result["mean"]["methods"],
    }
    for name, seen in rows.items():
        table.add_row(name, *(f"{seen[key]['mean']:.3f}" if key in seen else "" for key in names))
    shown.print(table)
    times = result["runtime"]
    shown.print(
        f"{times['rows']:,} rows filtered in {times['filter_seconds'] * 1e3:.2f} ms, {times['ratio']:.2f} of a masked "
        f"softmax in NumPy; retraining takes {times['retraining_ratio']:,.0f} times as long"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--answers", type=Path, required=True, help="folder with what the models answer")
    parser.add_argument("--data", type=Path, help="npz file of the data set")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--forget", nargs="*", type=int, help="classes; default: those of the experiment")
    parser.add_argument("--out", type=Path)
    args, of_training = parser.parse_known_args()
    classes, script, given, bound = EXPERIMENTS[args.experiment]
    if not args.no_training:
        command = [sys.executable, str(HERE / script), "--out", str(args.answers), *given, *of_training]
        command += ["--data", str(args.data)] if args.data else []
        subprocess.run([*command, "--forget", *map(str, args.forget or classes)], check=True)
    trained = Trained.load(args.answers)
    wanted = [c for c in trained.classes() if c in (args.forget or classes)]
    if not wanted or not trained.of_all():
        raise SystemExit("There are no answers of a model with all classes, and of two without a class.")
    measured = {str(c): measure_class(trained, c, bound) for c in track(wanted, "measuring", console=console)}
    times = runtime(trained, wanted[0])
    times["retraining_ratio"] = (
        statistics.fmean(each["retrained"]["seconds"] for each in measured.values()) / times["filter_seconds"]
    )
    told = trained.told[trained.of_all()[0]]
    result = {
        "experiment": args.experiment,
        "model": {key: value for key, value in told.items() if key not in ("seconds", "test_accuracy")},
        "test_accuracy": statistics.fmean(trained.told[run]["test_accuracy"] for run in trained.of_all()),
        "seeds": [run.seed for run in trained.of_all()],
        "retrain_seeds": sorted({run.seed for run in trained.test if run.without is not None}),
        "mse_bound": bound,
        "classes": [str(c) for c in wanted],
        "mean": summary(measured),
        "per_class": measured,
        "runtime": times,
    }
    show(result)
    figures.save(result, args.out or figures.RESULTS / f"{args.experiment}.json")


if __name__ == "__main__":
    main()
