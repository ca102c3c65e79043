"""Why a model has no class scores that a filter could stand behind, in words that say what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpru_tf.errors import AmbiguousSiteError, UnsupportedModelError, explain
from mpru_tf.saved_model.shapes import spell

if TYPE_CHECKING:
    from mpru_tf.saved_model.candidates import Candidate
    from mpru_tf.saved_model.graph import Tensor
    from mpru_tf.saved_model.score_site import ScoreSite

_VALID = "an output of shape [batch, n] with one probability or logit for each of n >= 2 classes"


def unsuitable(found: Sequence[Candidate], chosen: Sequence[Candidate], multi_label: bool) -> UnsupportedModelError:
    """None of the candidates is a class vector.

    Args:
        found: what each output was followed back to.
        chosen: those of the strongest kind of evidence; empty if there is no evidence at all.
        multi_label: whether a Sigmoid was looked for in place of a Softmax.
    """
    sigmoids = [candidate for candidate in found if candidate.ending == "sigmoid"]
    for candidate in chosen or sigmoids:
        if candidate.shape is not None and len(candidate.shape) > 2:
            return UnsupportedModelError(
                explain(
                    "The model answers scores at every position (pixel, frame or token), not one class vector per "
                    "example, which is what the filter is defined for.",
                    received=f"{candidate.output} of shape {spell(candidate.shape)}",
                    valid="an output of shape [batch, n]",
                )
            )
    beside = [candidate for candidate in found if candidate.ending == "side by side"]
    if beside and not chosen:
        return _side_by_side(beside)
    if multi_label and not chosen:
        return _not_multi_label(found)
    if sigmoids and not chosen:
        return _multi_label(sigmoids)
    for candidate in chosen:
        if candidate.width is None:
            return _open_width(candidate)
    if chosen:
        return _one_number(chosen)
    return _no_evidence(found)


def _multi_label(sigmoids: Sequence[Candidate]) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The model ends in a Sigmoid per class: a multi-label model, whose scores are not one distribution over "
            "which removed probability could be redistributed.",
            received=_listed(sigmoids),
            valid="a model with one score per class whose probabilities sum to one",
            hint="If each class is indeed judged on its own, say so with --multi-label: the forgotten classes then "
            "answer 0, and the others stay as they are.",
        )
    )


def _side_by_side(beside: Sequence[Candidate]) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "Several probability vectors lie side by side in one output: together they are no distribution, and the "
            "classes of one are not those of another.",
            received=_listed(beside),
            valid="one class vector per output",
            hint="Name what goes into the Softmax of the vector that is meant with --site TENSOR (`mpru-tf inspect` "
            "shows the graph's outputs), or export the vectors as outputs of their own.",
        )
    )


def _not_multi_label(found: Sequence[Candidate]) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "No output of this model is seen to come from a Sigmoid per class, as those of a multi-label model do.",
            received=_listed(found),
            valid="a model with a Sigmoid, or a linear layer, at the end and one value per class",
            hint="If its probabilities sum to one, leave --multi-label out.",
        )
    )


def _open_width(candidate: Candidate) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The number of classes cannot be read from the graph: neither the last axis of the class scores nor a "
            "weight or bias behind it has a static length.",
            received=f"{candidate.output} of shape {spell(candidate.shape)}",
            valid="class scores whose last axis has a fixed length, or a number of classes that you name",
            hint="Say how many classes the model has with --num-classes N; a server's request shows it.",
        )
    )


def _one_number(chosen: Sequence[Candidate]) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The model answers one number per example: a regression model has no class to forget, and a binary model "
            "with one score would have no class left to tell from the other.",
            received=_listed(chosen),
            valid=_VALID,
        )
    )


def _no_evidence(found: Sequence[Candidate]) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "No output of this model is seen to be computed from class scores: on the way back from each output there "
            "is no Softmax, no normalised vector and no final linear layer with one value per class. A regression "
            "model, an embedding or a detector has no class to forget.",
            received=_listed(found),
            valid=_VALID,
            hint="If an output does hold class scores (made by an op that is not looked into), say which one and what "
            "it holds: --output SIG:KEY --scores probabilities, or logits."
            if any(candidate.is_float for candidate in found)
            else "If they are computed from class scores all the same, name the tensor that holds these: --site TENSOR "
            "--scores probabilities, or logits.",
        )
    )


def binary(shown: str) -> UnsupportedModelError:
    """One of two classes forgotten leaves nothing to tell apart."""
    return UnsupportedModelError(
        explain(
            "The model answers one probability p for two classes. Forgetting one of two classes leaves a model that "
            "can only ever say the other: no classifier remains.",
            received=shown,
            valid="a model with a score for each of n >= 2 classes, of which at least one is retained",
            hint="Take the model out of service instead.",
        )
    )


def no_outputs() -> UnsupportedModelError:
    """There is nothing that a client could ask."""
    return UnsupportedModelError(
        explain(
            "The model has no signature with an output that depends on its input, so no client could ask it anything.",
            received="no usable SignatureDef",
            valid="a SavedModel that TensorFlow Serving can answer requests from",
            hint="Export it with signatures, e.g. model.export(path) or tf.saved_model.save(..., signatures=...).",
        )
    )


def no_floats(output: str, tensor: Tensor, dtype: int | None) -> UnsupportedModelError:
    """What would have to be filtered holds no floating-point numbers."""
    from tensorflow.core.framework import types_pb2

    shown = "a dtype that the graph does not tell"
    if dtype is not None:
        shown = types_pb2.DataType.Name(dtype) if dtype in types_pb2.DataType.values() else f"the unknown dtype {dtype}"
    return UnsupportedModelError(
        explain(
            f"The class scores behind {output} are not floating-point numbers.",
            received=f"{tensor} of {shown}",
            valid="float32, float64, float16 or bfloat16",
        )
    )


def sent_by_client(output: str, tensor: Tensor) -> UnsupportedModelError:
    """What would have to be filtered is the request itself."""
    return UnsupportedModelError(
        explain(
            f"The class scores behind {output} are sent by the client, who knows them anyway.",
            received=f"{tensor}, an input of the signature",
            valid="a model that computes class scores",
            hint="Forget the class in the model whose answers this one is sent.",
        )
    )


def other_width(site: ScoreSite, classes: int) -> UnsupportedModelError:
    """The owner names another number of classes than the graph tells."""
    return UnsupportedModelError(
        explain(
            f"The graph tells another number of classes: {site.classes}.",
            received=f"--num-classes {classes}",
            valid=f"{site.classes}, or no --num-classes",
        )
    )


def too_many_classes(output: str, width: int, most: int) -> UnsupportedModelError:
    """A filter holds a constant per class, and the file must be written and read."""
    return UnsupportedModelError(
        explain(
            "There are more classes than a filter is made for: it holds constants for each of them.",
            received=f"{output} of {width} classes",
            valid=f"at most {most}",
        )
    )


def unclear_scores(tensor: Tensor) -> AmbiguousSiteError:
    """A tensor was named, but whether it holds logits or probabilities is not to be seen."""
    return AmbiguousSiteError(
        explain(
            f"What {tensor} holds is not to be seen: no Softmax reads it, and no known last layer makes it.",
            received=f"--site {tensor}",
            valid="a tensor whose meaning the graph tells, or one whose meaning you tell",
            hint="Say what it holds with --scores probabilities or --scores logits.",
        )
    )


def no_such_tensor(name: str, known: Sequence[str]) -> AmbiguousSiteError:
    """A tensor was named that the graph does not have."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known[:5])
    return AmbiguousSiteError(
        explain(
            "There is no such tensor in this model.",
            received=f"--site {name}",
            valid="a name as `mpru-tf inspect` shows it, such as " + ", ".join(close) if close else "NODE:PORT",
        )
    )


def several_points(tensors: Sequence[Tensor]) -> AmbiguousSiteError:
    """The tensors that were named do not count the same classes."""
    return AmbiguousSiteError(
        explain(
            "The tensors that were named do not hold the same kind of scores for the same number of classes.",
            received=", ".join(map(str, tensors)),
            valid="tensors with the same number of classes that all hold logits, or all hold probabilities",
        )
    )


def not_named(outputs: Sequence[str], sites: Sequence[ScoreSite]) -> AmbiguousSiteError:
    """None of the outputs that the owner named is computed from class scores."""
    return AmbiguousSiteError(
        explain(
            "No class scores lead to the outputs that were named.",
            received=", ".join(outputs),
            valid=", ".join(output for site in sites for output in site.outputs) or None,
            hint="If one of them holds class scores all the same, say what it holds with --scores probabilities or "
            "--scores logits.",
        )
    )


def ambiguous(sites: Sequence[ScoreSite]) -> AmbiguousSiteError:
    """There are several class vectors."""
    listed = "; ".join(
        f"{site.classes} classes at {' and '.join(site.outputs)} ({site.points[0].tensor})" for site in sites
    )
    return AmbiguousSiteError(
        explain(
            "The model has several class vectors, and which of them counts the classes to forget is not for a program "
            "to guess.",
            received=listed,
            valid="one class vector",
            hint="Name an output that is computed from the right one with --output SIG:KEY, or its tensor with --site "
            "TENSOR; one of each if all of them count the same classes.",
        )
    )


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(sorted({f"{candidate.output} {spell(candidate.shape)}" for candidate in candidates}))
