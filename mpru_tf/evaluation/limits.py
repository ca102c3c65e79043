"""What the figures of an evaluation do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpru_tf.evaluation import metrics
from mpru_tf.evaluation.asking import TRAIN_ROWS

_MASS = 0.001  # probability on forgotten classes that a retrained model leaves without a word
_WORSE = 0.1  # by how much it may be right less often


def limits(evaluation: Mapping[str, Any], is_filter: bool, means_warning: str | None, odd: Sequence[str]) -> list[str]:
    """What the figures do not show, one sentence each.

    Args:
        evaluation: the figures.
        is_filter: whether the judged version has a manifest of ours.
        means_warning: what is odd about the class means.
        odd: what is odd about the versions.
    """
    told = list(odd)
    in_weights = evaluation["unlearned"]["unlearned_in_weights"]
    untouched = [c for c in evaluation["forgotten"] if c not in in_weights] if is_filter else []
    if in_weights:
        told.append(
            f"UNSIR changed the weights for {_classes(in_weights)}, and guarantees nothing: only answers were looked "
            "at here, not whether the weights learn it again quickly (relearn time, anamnesis index) or tell it in "
            "their activations."
        )
    if untouched:
        told.append(
            f"The weights in the file still hold {_classes(untouched)}: the filter changes what is answered, and "
            "whoever holds the file can take it off."
        )
    if is_filter:
        told.append(
            "An accuracy of 0 on forgotten classes is so by construction of the filter and proves nothing by itself."
        )
    if evaluation["retrained"] is None:
        told.append(
            "No retrained model was given: how near the answers are to those of a model that never saw the classes, "
            "which is the question, is not answered here."
        )
    elif evaluation["floor"] is None:
        told.append(
            "No second retrained model was given, so the floor is unknown: two trainings with different seeds are "
            "apart as well, and a distance as small as theirs means nothing."
        )
    else:
        told.append(
            "The floor is one distance between two trainings; other seeds would give another one. It is no bound: "
            "answers that average over seeds can be nearer to either."
        )
    told += _about_retrained(evaluation)
    data = evaluation["data"]
    gone = sum(data["per_class"][c] for c in evaluation["forgotten"])
    if not gone:
        told.append(f"{data['file']} holds no example of a forgotten class: nothing is said about these.")
    told.append(
        f"One data set was looked at: {data['test']:,} examples, {gone:,} of them of forgotten classes. On other "
        "inputs the answers may be nearer or further apart."
    )
    if any(one["membership"] for one in evaluation["answers"].values()):
        told.append(
            "Membership inference is a lower bound: these attacks look at one answer each, and a stronger attack may "
            f"tell more. Of each class, at most the first {TRAIN_ROWS:,} training examples were asked about."
        )
    else:
        told.append(
            "Membership inference was not tried: it needs examples that the original was trained on, of the forgotten "
            "classes too."
        )
    told.append(
        "The attack on the nearest class is our own formalisation of MIA-NN (Wang, Ebrahimpour-Boroojeny, Sundaram, "
        "arXiv 2506.20893), with a linear attacker."
    )
    if untouched:
        told.append(
            "Relearn time and the anamnesis index measure how fast weights learn a class again. A filter leaves the "
            f"weights as they are, so these do not apply to what it does to {_classes(untouched)}."
        )
    told.append(f"In a divergence, a probability below {metrics.FLOOR:g} counts as {metrics.FLOOR:g}.")
    if means_warning is not None:
        told.append(means_warning)
    return told


def _classes(indices: Sequence[int]) -> str:
    return f"class{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _about_retrained(evaluation: Mapping[str, Any]) -> list[str]:
    """What is odd about the model that stands for retraining."""
    answers, told = evaluation["answers"], []
    retrained = answers.get("retrained")
    if retrained is None:
        return []
    knows, mass = retrained["accuracy_forgotten"], evaluation["retrained_mass_on_forgotten"]
    if knows:
        told.append(
            f"The retrained model takes {100 * knows:.1f} % of the examples of forgotten classes for what they are: it "
            "has seen them, or its answers are not in the order of the data. Distances to it say nothing."
        )
    elif mass > _MASS:
        told.append(
            f"The retrained model gives forgotten classes a probability of {mass:.3f} in the mean, which a filter "
            "cannot: distances are taken to its answers given a retained class."
        )
    before, after = answers["unfiltered"]["accuracy_retained"], retrained["accuracy_retained"]
    if before is not None and after is not None and after < before - _WORSE:
        told.append(
            f"On retained classes the retrained model is right in {100 * after:.1f} % of the examples, the original in "
            f"{100 * before:.1f} %: it is a weaker model, or its answers are not in the order of the data, and "
            "nearness to it is worth less."
        )
    return told
