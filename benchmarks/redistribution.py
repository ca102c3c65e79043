"""Which rule of redistribution comes nearest to retraining? Fitted on some classes, judged on the others.

    python benchmarks/redistribution.py build/cifar10 build/covertype

Takes folders of answers (benchmarks/experiments.py makes them), one per data set. The test examples of each are halved:
numbers are fitted to one half (mean KL(retrained || rule) on forgotten plus on retained examples), and judged on the
other. Which numbers:

    other classes      that suit the other classes of the data set; the model that forgets is the same
    other data sets    that suit all other data sets: nothing about this one was seen
    all data sets      that suit every data set alike: what a default could be
    as shipped         the default

With p the unfiltered answer, s = sum(p_F), w = p_R / sum(p_R) and m the mean answer of forgotten examples over R:

    renormalize      q = w
    tempered         q ~ w^(1/t), t = 1 + (T - 1) s
    bent             the same with s^a in the place of s
    calibrated       the same with t = T0 + (T - T0) s: rows of retained classes are flattened, too
    and uniform      (1 - e s) tempered + e s / |R|
    and destinations (1 - e s) tempered + e s m
    tilted           q ~ w^(1/t) m^(b s)
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import numpy as np
from answers import Array, probabilities
from experiments import Trained
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize

from mpru_tf.evaluation import metrics
from mpru_tf.filters import DEFAULT_TEMPERATURE

TINY = 1e-30
MOST_FORGOTTEN, MOST_RETAINED = 1000, 5000  # examples in each half


# ----------------------------------------------------------------------------------------------------------- the rules
def _share(q: Array) -> Array:
    return np.asarray(q / q.sum(-1, keepdims=True))


def _flat(p: Array, keep: Array, t: Array) -> Array:
    """p_R^(1/t), divided by its sum."""
    logs = np.where(keep, np.log(np.maximum(p, TINY)) / t, -np.inf)
    return _share(np.exp(logs - logs.max(-1, keepdims=True)))


def renormalize(p: Array, keep: Array, m: Array) -> Array:
    return _share(np.where(keep, np.maximum(p, TINY), 0.0))


def tempered(p: Array, keep: Array, m: Array, T: float) -> Array:
    return _flat(p, keep, 1 + (T - 1) * _gone(p, keep))


def bent(p: Array, keep: Array, m: Array, T: float, a: float) -> Array:
    return _flat(p, keep, 1 + (T - 1) * _gone(p, keep) ** a)


def calibrated(p: Array, keep: Array, m: Array, T: float, T0: float) -> Array:
    return _flat(p, keep, T0 + (T - T0) * _gone(p, keep))


def and_uniform(p: Array, keep: Array, m: Array, T: float, e: float) -> Array:
    s = _gone(p, keep)
    return (1 - e * s) * tempered(p, keep, m, T) + e * s * keep / keep.sum()


def and_destinations(p: Array, keep: Array, m: Array, T: float, e: float) -> Array:
    s = _gone(p, keep)
    return (1 - e * s) * tempered(p, keep, m, T) + e * s * m


def calibrated_and_destinations(p: Array, keep: Array, m: Array, T: float, T0: float, e: float) -> Array:
    s = _gone(p, keep)
    return (1 - e * s) * calibrated(p, keep, m, T, T0) + e * s * m


def tilted(p: Array, keep: Array, m: Array, T: float, b: float) -> Array:
    s = _gone(p, keep)
    logs = np.log(np.maximum(p, TINY)) / (1 + (T - 1) * s) + b * s * np.log(np.maximum(m, 1e-6))
    logs = np.where(keep, logs, -np.inf)
    return _share(np.exp(logs - logs.max(-1, keepdims=True)))


def _gone(p: Array, keep: Array) -> Array:
    return np.minimum(np.where(keep, 0.0, p).sum(-1, keepdims=True), 1.0)


Rule = Callable[..., Array]
# The rule, where the search starts, and between which bounds it stays.
RULES: dict[str, tuple[Rule, Sequence[float], Sequence[tuple[float, float]]]] = {
    "renormalize": (renormalize, (), ()),
    "tempered": (tempered, (1.5,), ((1, 10),)),
    "bent": (bent, (1.5, 1.0), ((1, 10), (0.02, 5))),
    "calibrated": (calibrated, (1.5, 1.0), ((1, 10), (0.7, 3))),
    "tempered and uniform": (and_uniform, (1.5, 0.05), ((1, 10), (0, 0.9))),
    "tempered and destinations": (and_destinations, (1.5, 0.05), ((1, 10), (0, 0.9))),
    "calibrated and destinations": (calibrated_and_destinations, (1.5, 1.0, 0.05), ((1, 10), (0.7, 3), (0, 0.9))),
    "tilted": (tilted, (1.5, 0.1), ((1, 10), (0, 1))),
}
SHIPPED = {"tempered": [DEFAULT_TEMPERATURE]}


# ------------------------------------------------------------------------------------------------------------ judgement
@dataclass(frozen=True)
class Case:
    """One model of all classes, one class, and what models that never saw it answer to some test examples.

    Attributes:
        c: the class.
        p: [N, n] of the model of all classes.
        others: the same of each retrained model.
        m: [n] the mean answer over R to training examples of the class.
        is_forgotten: [N] whether an example is of the class.
    """

    c: int
    p: Array
    others: list[Array]
    m: Array
    is_forgotten: Array

    def distances(self, rule: Rule, numbers: Sequence[float]) -> tuple[float, float]:
        """Mean KL(retrained || rule) on retained and on forgotten examples."""
        keep = np.arange(self.p.shape[1]) != self.c
        q = rule(self.p, keep, self.m, *numbers)
        each = np.mean([metrics.kl(r, q) for r in self.others], axis=0)
        return float(each[~self.is_forgotten].mean()), float(each[self.is_forgotten].mean())

    def floor(self) -> tuple[float, float]:
        """The same between the retrained models."""
        each = np.mean([metrics.kl(one, other) for one, other in itertools.permutations(self.others, 2)], axis=0)
        return float(each[~self.is_forgotten].mean()), float(each[self.is_forgotten].mean())


def cases(trained: Trained) -> tuple[list[Case], list[Case]]:
    """Every model of all classes with every class that was retrained without: to fit to, and to judge on.

    Retained examples are as frequent as in the test set.
    """
    random = np.random.default_rng(0)
    y = trained.y_test
    halves = np.array_split(random.permutation(len(y)), 2)
    found: tuple[list[Case], list[Case]] = ([], [])
    for c in trained.classes():
        for original in trained.of_all():
            keep = np.arange(trained.n) != c
            means = probabilities(trained.train[original])[trained.y_train == c].mean(axis=0)
            for half, cases_of in zip(halves, found, strict=True):
                rows = np.concatenate([half[y[half] == c][:MOST_FORGOTTEN], half[y[half] != c][:MOST_RETAINED]])
                cases_of.append(
                    Case(
                        c,
                        probabilities(trained.test[original][rows]),
                        [probabilities(trained.test[run][rows]) for run in trained.without(c)],
                        _share(np.where(keep, means, 0.0)),
                        y[rows] == c,
                    )
                )
    return found


def fit(of: Sequence[Sequence[Case]], name: str) -> list[float]:
    """The numbers of a rule that suit these data sets best; each counts the same, however many cases it has."""
    rule, start, bounds = RULES[name]
    if not start:
        return []

    def loss(numbers: Array) -> float:
        return statistics.fmean(
            statistics.fmean(sum(case.distances(rule, numbers)) for case in data_set) for data_set in of
        )

    best = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 0.01, "fatol": 1e-4})
    return [float(number) for number in best.x]


def judge(of: Sequence[Case], name: str, numbers: dict[int, list[float]]) -> dict[str, Any]:
    """Mean distances and excesses over the cases, with standard errors over the classes if there are several."""
    rule = RULES[name][0]
    per_class: dict[int, list[list[float]]] = {}
    for case in of:
        seen, floor = case.distances(rule, numbers[case.c]), case.floor()
        per_class.setdefault(case.c, []).append([*seen, seen[0] - floor[0], seen[1] - floor[1]])
    means = np.array([np.mean(values, axis=0) for values in per_class.values()])
    keys = ("kl_retained", "kl_forgotten", "excess_retained", "excess_forgotten")
    result: dict[str, Any] = dict(zip(keys, means.mean(axis=0).tolist(), strict=True))
    if len(means) > 1:
        error = means.std(axis=0, ddof=1) / len(means) ** 0.5
        result["errors"] = dict(zip(keys, error.tolist(), strict=True))
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="+", type=Path, help="folders of answers")
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "redistribution.json")
    args = parser.parse_args()
    halves = {folder.name: cases(Trained.load(folder)) for folder in args.answers}
    of = {name: to_fit for name, (to_fit, _) in halves.items()}
    result: dict[str, Any] = {name: {"classes": sorted({case.c for case in found})} for name, found in of.items()}
    console = Console(stderr=True)
    for rule in track(RULES, "fitting", console=console):
        of_all = fit(list(of.values()), rule)
        for name, (to_fit, judged) in halves.items():
            classes = {case.c for case in to_fit}
            ways = result[name].setdefault("rules", {}).setdefault(rule, {})
            if len(classes) > 1:  # with one class there is nothing else to fit to
                others = {c: fit([[case for case in to_fit if case.c != c]], rule) for c in sorted(classes)}
                ways["other classes"] = {**judge(judged, rule, others), "numbers": list(others.values())}
            fixed = {"all data sets": of_all}
            if len(of) > 1:
                fixed["other data sets"] = fit([found for other, found in of.items() if other != name], rule)
            if rule in SHIPPED:
                fixed["as shipped"] = SHIPPED[rule]
            for way, numbers in fixed.items():
                ways[way] = {**judge(judged, rule, dict.fromkeys(classes, numbers)), "numbers": numbers}
    for name, seen in result.items():
        table = Table(
            title=f"{name}: classes {seen['classes']}, KL(retrained || rule) less that of two retrained models"
        )
        for heading in ("rule", "numbers from", "retained", "excess", "forgotten", "excess", "numbers"):
            table.add_column(heading, no_wrap=True)
        for rule, ways in seen["rules"].items():
            for way, values in ways.items():
                numbers = values["numbers"]
                shown = np.mean(numbers, axis=0) if way == "other classes" else np.array(numbers)
                figures_of = [f"{values[key]:.4f}" for key in ("kl_retained", "excess_retained")]
                figures_of += [f"{values[key]:.4f}" for key in ("kl_forgotten", "excess_forgotten")]
                table.add_row(rule, way, *figures_of, " ".join(f"{number:.2f}" for number in shown))
        Console().print(table)
    figures.save(result, args.out)


if __name__ == "__main__":
    main()
