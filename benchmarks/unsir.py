"""UNSIR on CIFAR-10 ResNets: what is forgotten, what is kept, and what is left in the weights.

    python benchmarks/unsir.py resnet20 --model cifar10_resnet20.keras --data cifar10.npz --network "a ResNet-20"

A network of our own, and one of the same kind that never saw class 3, made by `train_cifar.py`:

    python benchmarks/train_cifar.py --data cifar10.npz --depth 18 --stem imagenet --shortcut B --epochs 8 \\
        --forget cat --retrain-seeds 1 --out build/unsir --weights build/unsir
    python benchmarks/unsir.py resnet18 --model build/unsir/all-seed-0.keras --data cifar10.npz --inputs pixels \\
        --epochs 8 --retrained build/unsir/without-3-seed-1.keras --network "a ResNet-18"

Each measurement is written when it is done, and one that is there is not made again: interrupt, and start the same
command later. The data file needs x_train, y_train, x_test, y_test.

The first table has one row per forget list and preset. The second compares what a filter, UNSIR, both and retraining
protect, for one class: what the server answers at most, whether a linear probe on the penultimate layer still tells the
class, and how many steps of fine-tuning bring it back.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import figures
import numpy as np
from rich.console import Console
from rich.table import Table

import mpru_tf
from mpru_tf.evaluation import weights
from mpru_tf.unlearning.config import Preset

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
FORGET_LISTS = ((0, 2), (3,), (0, 2, 3, 5))
COMPARED = 3
MOST_ASKED = 300  # examples of the compared class, after each step of relearning
ALPHAS = (0.1, 0.2, 0.5)
console = Console(stderr=True)


def normalised(x: Any) -> Any:
    """Pixels as models take them that were trained with the statistics of ImageNet."""
    return (x.astype(np.float32) / 255 - MEAN) / STD


def pixels(x: Any) -> Any:
    """Pixels as they are."""
    return x.astype(np.float32)


INPUTS = {"normalised": normalised, "pixels": pixels}


class Data:
    """Training and test examples as the model takes them; of each class as many as are asked for."""

    def __init__(self, file: Path, taken: Callable[[Any], Any], per_class: int, tested: int) -> None:
        with np.load(file) as arrays:
            x, y = arrays["x_train"], arrays["y_train"].reshape(-1)
            # The preset `gentle` was tuned on the first half of the test images, so it is judged on the other one.
            self.x_test, self.y_test = arrays["x_test"][-tested:], arrays["y_test"].reshape(-1)[-tested:]
        self.trained_on = np.bincount(y)
        random = np.random.default_rng(0)
        chosen = [random.permutation(np.flatnonzero(y == c))[:per_class] for c in range(int(y.max()) + 1)]
        chosen = np.sort(np.concatenate(chosen))
        self.x, self.y = taken(x[chosen]), y[chosen]
        self.x_test = taken(self.x_test)

    def without(self, forgotten: Any) -> tuple[Any, Any]:
        """Training examples of the other classes."""
        keep = ~np.isin(self.y, forgotten)
        return self.x[keep], self.y[keep]

    def of(self, forgotten: Any) -> tuple[Any, Any]:
        """Test examples of these classes."""
        keep = np.isin(self.y_test, forgotten)
        return self.x_test[keep], self.y_test[keep]


def load(path: Path) -> Any:
    """A Keras model."""
    import keras

    return keras.models.load_model(path, compile=False)


def unlearn(model: Any, data: Data, forgotten: tuple[int, ...], preset: str, epochs: int) -> tuple[Any, dict[str, Any]]:
    """Unlearn; return the model, and its row of the first table."""
    config = Preset(preset).config()
    result = mpru_tf.unsir(
        model, forgotten, data.without(forgotten), config, validation=(data.x_test, data.y_test), progress=True
    )
    seconds = sum(result.seconds.values())
    examples = result.steps["noise"] * config.noise_batch
    examples += (result.steps["impair"] + result.steps["repair"]) * config.batch_size
    retraining = epochs * sum(n for c, n in enumerate(data.trained_on) if c not in forgotten)
    row = {name: value for name, value in result.to_dict().items() if name not in ("config", "classes")}
    row |= {"preset": preset, "drop": result.before.retained - result.after.retained, "seconds_in_all": seconds}
    # Of the same network on the same machine, an example costs what it costs: no retraining is needed to compare.
    return result.model, {**row, "share_of_retraining": examples / retraining}


def probabilities(model: Any, x: Any) -> Any:
    """What a model answers, as probabilities float64 [N, n]."""
    scores = np.concatenate([np.asarray(model(x[i : i + 500], training=False)) for i in range(0, len(x), 500)])
    e = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def left_in_weights(model: Any, original: Any, data: Data, per_class: int) -> dict[str, Any]:
    """Probe, relearn time and distance for one model."""
    few = np.concatenate([np.flatnonzero(data.y == c)[:per_class] for c in range(10)])
    x, y = data.x[few], data.y[few]
    probe = weights.linear_probe(
        (weights.penultimate(model, x), y), (weights.penultimate(model, data.x_test), data.y_test), [COMPARED]
    )
    x_f, y_f = (each[:MOST_ASKED] for each in data.of([COMPARED]))
    was = float((probabilities(original, x_f).argmax(-1) == y_f).mean())
    relearning = weights.relearn_time(model, (x, y), (x_f, y_f), was, alpha=min(ALPHAS))
    distance = weights.weight_distance(model, original)
    return {
        "largest_forgotten_probability": float(probabilities(model, data.x_test)[:, COMPARED].max()),
        "forgotten_top1": float((probabilities(model, x_f).argmax(-1) == y_f).mean()),
        "probe": probe.to_dict(),
        "relearning": summary(relearning.accuracies, was),
        "weight_distance": {"whole": distance.whole, "largest": max(distance.layers.values())},
    }


def summary(accuracies: Any, was: float) -> dict[str, Any]:
    """Steps until the class was back to within each alpha, and how far it came."""
    back = {alpha: [i for i, each in enumerate(accuracies) if each >= (1 - alpha) * was] for alpha in ALPHAS}
    steps = {str(alpha): found[0] if found else None for alpha, found in back.items()}
    return {"steps_within": steps, "steps_tried": len(accuracies) - 1, "best_top1": max(accuracies), "was": was}


def anamnesis(compared: dict[str, Any], alpha: str) -> dict[str, Any]:
    """The anamnesis index of each row."""
    steps = {name: row["relearning"]["steps_within"][alpha] for name, row in compared.items()}
    took = {name: weights.Relearning(each, 0.0, ()) for name, each in steps.items()}
    index = {name: weights.anamnesis_index(each, took["retrained"]) for name, each in took.items()}
    return {name: "infinite" if value == np.inf else value for name, value in index.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Fill in what is missing in the results."""
    data = Data(args.data, INPUTS[args.inputs], args.per_class, args.tested)
    results: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    original = load(args.model)
    results |= {"network": args.network or args.model.stem, "parameters": original.count_params()}
    results |= {"test_examples": len(data.y_test), "retraining_epochs": args.epochs, "compared": COMPARED}
    rows = results.setdefault("unlearned", {})
    compared = results.setdefault("left_in_weights", {})

    def keep(where: dict[str, Any], name: str, value: Any) -> None:
        where[name] = value
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    for preset in args.presets:
        to_compare, after = None, f"unsir, {preset}"
        for forgotten in FORGET_LISTS:
            name = f"{','.join(map(str, forgotten))} {preset}"
            wanted = forgotten == (COMPARED,) and after not in compared
            if name in rows and not wanted:
                continue
            console.print(f"unlearning {name}", highlight=False)
            model, row = unlearn(original, data, forgotten, preset, args.epochs)
            keep(rows, name, row)
            if wanted:
                to_compare = model
        if to_compare is not None:
            keep(compared, after, left_in_weights(to_compare, original, data, args.per_class_probed))
    if "original" not in compared:
        keep(compared, "original", left_in_weights(original, original, data, args.per_class_probed))
    if args.retrained is not None and "retrained" not in compared:
        keep(compared, "retrained", left_in_weights(load(args.retrained), original, data, args.per_class_probed))
    if args.retrained is not None and (told := args.retrained.with_suffix(".npz")).exists():
        with np.load(told) as answers:  # train_cifar.py leaves them beside the model
            keep(results, "retraining_seconds", float(answers["seconds"]))
    if "retrained" in compared:
        keep(results, "anamnesis_index", {str(alpha): anamnesis(compared, str(alpha)) for alpha in ALPHAS})
    return results


def show(results: dict[str, Any]) -> None:
    """Print both tables."""
    table = Table(title=f"{results['network']}, CIFAR-10 test set")
    for heading in (
        "forgotten",
        "preset",
        "forgotten top-1",
        "retained top-1",
        "before",
        "drop",
        "steps",
        "s",
        "share",
    ):
        table.add_column(heading, justify="right")
    for row in results["unlearned"].values():
        table.add_row(
            ", ".join(map(str, row["forgotten"])),
            row["preset"],
            f"{row['after']['forgotten']:.4f}",
            f"{row['after']['retained']:.4f}",
            f"{row['before']['retained']:.4f}",
            f"{row['drop']:.4f}",
            str(sum(row["steps"].values())),
            f"{row['seconds_in_all']:.0f}",
            f"{row['share_of_retraining']:.2%}",
        )
    shown = Console()
    shown.print(table)
    table = Table(title=f"class {COMPARED}: what protects what")
    relearn = f"relearn steps, to {' / '.join(f'{1 - alpha:.0%}' for alpha in ALPHAS)}"
    for heading in ("weights", "filter", "largest probability", "probe, AUC", "balanced", relearn, "distance"):
        table.add_column(heading, justify="right")
    for name, row in results["left_in_weights"].items():
        steps = ["never" if n is None else str(n) for n in row["relearning"]["steps_within"].values()]
        rest = (f"{row['probe']['auc']:.3f}", f"{row['probe']['balanced_accuracy']:.3f}")
        rest += (" / ".join(steps), f"{row['weight_distance']['whole']:.3f}")
        table.add_row(name, "no", f"{row['largest_forgotten_probability']:.4f}", *rest)
        if name != "retrained":
            # A filter answers exactly 0 and leaves the weights as they are: all else is as without it.
            table.add_row(name, "yes", "0", *rest)
    shown.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the results: benchmarks/results/unsir_NAME.json")
    parser.add_argument("--network", help="what README calls it; default: the name of its file")
    parser.add_argument("--model", type=Path, required=True, help="a .keras file")
    parser.add_argument("--data", type=Path, required=True, help="an .npz file")
    parser.add_argument("--inputs", choices=list(INPUTS), default="normalised", help="what the model takes")
    parser.add_argument("--epochs", type=int, default=60, help="of a retraining, to compare the steps with")
    parser.add_argument(
        "--retrained", type=Path, help=f"a .keras file of a model that never saw class {COMPARED}, of 10 outputs"
    )
    parser.add_argument("--presets", nargs="+", default=["gentle", "paper"], choices=[each.value for each in Preset])
    parser.add_argument("--per-class", type=int, default=1000, help="training examples of each class")
    parser.add_argument("--per-class-probed", type=int, default=200, help="... for probe and relearning")
    parser.add_argument("--tested", type=int, default=5_000, help="the last test examples")
    args = parser.parse_args()
    args.out = figures.RESULTS / f"unsir_{args.name}.json"
    started = time.perf_counter()
    results = measure(args)
    show(results)
    figures.save(results, args.out)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
