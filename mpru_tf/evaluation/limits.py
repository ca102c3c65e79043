"""What the figures of an evaluation do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpru_tf.evaluation import metrics
from mpru_tf.evaluation.asking import TRAIN_ROWS


def limits(evaluation: Mapping[str, Any], is_filter: bool, means_warning: str | None, odd: Sequence[str]) -> list[str]:
    """What the figures do not show, one sentence each.

    Args:
        evaluation: the figures.
        is_filter: whether the judged version has a manifest of ours.
        means_warning: what is odd about the class means.
        odd: what is odd about the versions.
    """
    told = list(odd)
    unlearned = bool(evaluation["unlearned"]["unlearned_in_weights"])
    if unlearned:
        told.append(
            "UNSIR changed the weights, and guarantees nothing: only answers were looked at here, not whether the "
            "weights learn the class again quickly (relearn time, anamnesis index) or tell it in their activations."
        )
    elif is_filter:
        told.append(
            "The weights in the file still hold the class: the filter changes what is answered, and whoever holds the "
            "file can take it off."
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
        told.append("The floor is one distance between two trainings; other seeds would give another one.")
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
    if is_filter and not unlearned:
        told.append(
            "Relearn time and the anamnesis index measure how fast weights learn a class again. A filter leaves the "
            "weights as they are, so these do not apply to it."
        )
    told.append(f"In a divergence, a probability below {metrics.FLOOR:g} counts as {metrics.FLOOR:g}.")
    if means_warning is not None:
        told.append(means_warning)
    return told
