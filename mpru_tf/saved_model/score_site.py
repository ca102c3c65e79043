"""What is said about the class scores of a model: by the graph, as a score site, and by its owner, as a choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpru_tf.errors import MPRUError, explain
from mpru_tf.saved_model.candidates import DT_BFLOAT16, DT_HALF, LOGITS, PROBABILITIES
from mpru_tf.saved_model.graph import Tensor
from mpru_tf.saved_model.shapes import Shape


@dataclass(frozen=True)
class Choice:
    """What the owner of a model says about its class scores, where the graph leaves it open.

    Attributes:
        outputs: SIG:KEY of outputs that are computed from the class scores that are meant.
        sites: names of the tensors that hold them, as :func:`str` writes a tensor.
        scores: 'logits' or 'probabilities', what they hold, where the graph does not tell.
        classes: number n of classes, where the graph does not tell.
        multi_label: each class is judged on its own, by a Sigmoid.

    Raises:
        MPRUError: ``scores`` is something else, or ``classes`` is below 2.
    """

    outputs: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    scores: str | None = None
    classes: int | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        if self.scores not in (None, LOGITS, PROBABILITIES):
            raise MPRUError(
                explain(
                    "Class scores hold one of two things.",
                    received=repr(self.scores),
                    valid=f"{LOGITS}, {PROBABILITIES}",
                )
            )
        if self.classes is not None and self.classes < 2:
            raise MPRUError(explain("A classifier has classes.", received=self.classes, valid="2 or more"))

    def or_that_of(self, recorded: Choice | None) -> Choice:
        """This choice or, if nothing is said in it, the one that a manifest recorded."""
        return self if recorded is None or self != Choice() else recorded

    @classmethod
    def of(
        cls,
        outputs: Sequence[str] | str,
        sites: Sequence[str] | str,
        scores: str | None,
        classes: int | None,
        multi_label: bool,
    ) -> Choice:
        """The choice that a caller of the public functions makes; one name need not be put into a list."""
        outputs, sites = (tuple([names] if isinstance(names, str) else names) for names in (outputs, sites))
        return cls(outputs, sites, scores, classes, multi_label)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Choice:
        """The choice that :func:`dataclasses.asdict` told, perhaps by way of JSON."""
        return cls(**{**values, "outputs": tuple(values["outputs"]), "sites": tuple(values["sites"])})


@dataclass(frozen=True)
class SitePoint:
    """One physical tensor to replace.

    Attributes:
        meta_graph: position of its MetaGraphDef in the SavedModel.
        tensor: the raw class scores.
        kind: 'logits' or 'probabilities', what the tensor holds.
        classes: length n of its last axis.
        dtype: its DataType, one of the four floating-point ones.
        shape: as far as the graph proves it, None for an unknown rank. An open last axis is compared with n at run
            time.
    """

    meta_graph: int
    tensor: Tensor
    kind: str
    classes: int
    dtype: int
    shape: Shape | None = None


@dataclass(frozen=True)
class ScoreSite:
    """The class scores of a model: one tensor, or its copies in several functions and MetaGraphs.

    Attributes:
        kind: 'logits' or 'probabilities', what the filter takes and gives.
        classes: number n of classes.
        points: every physical tensor to replace.
        output_kinds: for each output 'SIG:KEY' that is computed from the site, what it holds: 'probabilities',
            'log_probabilities', 'logits', or 'derived' (ids, labels, ranked scores and the like).
        reason: why this tensor was taken for the class scores, one sentence.
        multi_label: whether each class is judged on its own, so that probabilities do not sum to one.
    """

    kind: str
    classes: int
    points: tuple[SitePoint, ...]
    output_kinds: dict[str, str]
    reason: str
    multi_label: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that are computed from the site, as SIG:KEY, sorted."""
        return tuple(sorted(self.output_kinds))

    @property
    def is_half(self) -> bool:
        """Whether the scores are of a 16-bit dtype somewhere."""
        return any(point.dtype in (DT_HALF, DT_BFLOAT16) for point in self.points)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "kind": self.kind,
            "classes": self.classes,
            "multi_label": self.multi_label,
            "outputs": list(self.outputs),
            "output_kinds": dict(sorted(self.output_kinds.items())),
            "tensors": [str(point.tensor) for point in self.points],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class SeenTensor:
    """A tensor at which the way back from some outputs ended, and what was made of it.

    Attributes:
        tensors: its name; several where a condition decides which of them answers.
        op: the op that makes it.
        ending: 'softmax' or 'sigmoid' (what reads it), 'linear', 'forest', 'normalised', 'mixture' or 'other'.
        shape: its shape, for people.
        outputs: the outputs from which it was reached, as SIG:KEY.
        verdict: whether it was taken for the class scores and, if not, why and what would change that.
    """

    tensors: tuple[str, ...]
    op: str
    ending: str
    shape: str
    outputs: tuple[str, ...]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**dataclasses.asdict(self), "tensors": list(self.tensors), "outputs": list(self.outputs)}
