"""Where the class scores are: from the signatures' outputs back to the tensors that a filter has to replace.

A score site is a tensor whose last axis counts the classes. If the scores leave the model through a Softmax, the site
is the Softmax's *input*: whatever else is computed from it (an argmax, a top k, labels looked up by index) is then
filtered too, by construction. If there is no Softmax, the site is the tensor that leaves the model. Found here by
reading the graph alone; nothing is executed. What the graph leaves open its owner decides with a :class:`Choice`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mpru_tf.errors import AmbiguousSiteError, UnsupportedModelError
from mpru_tf.saved_model import refusals, shapes
from mpru_tf.saved_model.candidates import (
    DT_BFLOAT16,
    DT_HALF,
    FLOATS,
    LOGITS,
    PROBABILITIES,
    Candidate,
    candidate_of,
    held,
    kind_at,
    linear_behind,
    weights_behind,
)
from mpru_tf.saved_model.dataflow import Dataflow
from mpru_tf.saved_model.graph import MAIN, Graph, Place, Tensor
from mpru_tf.saved_model.score_site import Choice, ScoreSite, SeenTensor, SitePoint
from mpru_tf.saved_model.shapes import Shape, spell
from mpru_tf.saved_model.structure import MOST_CLASSES
from mpru_tf.saved_model.walk import SIGMOID_OPS, SOFTMAX_OPS, head_input

Found = tuple[Graph, Candidate]


@dataclass(frozen=True)
class Survey:
    """What is known about a model's class scores: the sites, or the reason why there is none."""

    sites: tuple[ScoreSite, ...]
    refusal: UnsupportedModelError | AmbiguousSiteError | None
    seen: tuple[SeenTensor, ...] = ()

    def the_site(self) -> ScoreSite:
        """The one score site.

        Raises:
            UnsupportedModelError: the model has none.
            AmbiguousSiteError: it has several that differ.
        """
        if self.refusal is not None:
            raise self.refusal
        return self.sites[0]


def survey(graphs: Sequence[Graph], choice: Choice | None = None) -> Survey:
    """Find the class scores of all MetaGraphs together.

    Args:
        graphs: the MetaGraphs of one SavedModel.
        choice: what the owner says, where the graph leaves it open.
    """
    choice = choice or Choice()
    found = _candidates(graphs, choice.multi_label)
    if not found:
        return Survey((), refusals.no_outputs())
    try:
        sites, refusal = _sites(graphs, found, choice)
    except (UnsupportedModelError, AmbiguousSiteError) as error:
        sites, refusal = (), error
    return Survey(sites, refusal, _seen(found, sites, choice))


def _candidates(graphs: Sequence[Graph], multi_label: bool) -> list[Found]:
    found = []
    for graph in graphs:
        for name, signature in sorted(graph.meta_graph.signature_def.items()):  # maps of a proto have no order
            for key, info in sorted(signature.outputs.items()):
                candidate = candidate_of(graph, name, signature, key, info, multi_label)
                if candidate is not None:
                    found.append((graph, candidate))
    return found


def _sites(
    graphs: Sequence[Graph], found: list[Found], choice: Choice
) -> tuple[tuple[ScoreSite, ...], UnsupportedModelError | AmbiguousSiteError | None]:
    """The score sites, and why they do not do."""
    named = [entry for entry in found if entry[1].output in choice.outputs]
    chosen, kind, reason = _strongest(found, named, choice)
    suited = [entry for entry in chosen if _is_class_vector(entry[1], choice)]
    refusal: UnsupportedModelError | AmbiguousSiteError | None = _binary(found, suited, choice)
    if refusal is None and not suited:
        refusal = refusals.unsuitable(_bare(found), _bare(chosen), choice.multi_label)
    if refusal is not None and not choice.sites:
        return (), refusal
    mixed = _past(found, suited, choice) if kind == LOGITS and not choice.outputs and not choice.sites else []
    if mixed:
        suited, kind, reason = mixed, PROBABILITIES, "Several heads are mixed in it, of which other outputs show one."
    again = _called_again(found, suited, choice) if kind == LOGITS else []
    groups = () if refusal is not None else _grouped(suited, kind, reason, choice, again)
    sites = tuple(_with_all_outputs(graphs, site, found) for site in groups)
    if choice.sites:
        sites = tuple(_with_all_outputs(graphs, site, found) for site in _named_tensors(graphs, sites, choice, found))
    if choice.outputs:
        meant = tuple(site for site in sites if not set(choice.outputs).isdisjoint(site.output_kinds))
        if not meant:
            return sites, refusals.not_named(choice.outputs, sites)
        sites = _joined(_nearest(meant, choice.outputs))
    if len(sites) > 1:
        return sites, refusals.ambiguous(sites)
    if choice.classes is not None and sites[0].classes != choice.classes:
        return sites, refusals.other_width(sites[0], choice.classes)
    return sites, None


def _bare(found: Iterable[Found]) -> list[Candidate]:
    return [candidate for _, candidate in found]


# ------------------------------------------------------------------------------------------------------------ evidence
def _evidence(choice: Choice) -> list[tuple[str, str, str]]:
    """What class scores may be known by, strongest first: the ending, what the tensor holds, and why, in words."""
    told = "--scores says what it holds."
    linear = (
        "No Softmax in the graph: the output of the last linear layer is taken for the logits. Were it a regression or "
        "an embedding, there would be no class to forget."
    )
    if choice.multi_label:
        linear = linear.replace("Softmax", "Sigmoid")
        evidence = [
            ("sigmoid", LOGITS, "It is the input of the Sigmoid from which these outputs are computed."),
            ("mixture", PROBABILITIES, "It leaves the model as probabilities, mixed from several Sigmoids."),
        ]
    else:
        evidence = [
            ("softmax", LOGITS, "It is the input of the Softmax from which these outputs are computed."),
            ("forest", PROBABILITIES, "It is what the decision forest op answers."),
            ("normalised", PROBABILITIES, "It leaves the model as probabilities, normalised in the graph."),
        ]
    if choice.scores is None:
        return [*evidence, ("linear", LOGITS, linear)]
    return [*evidence, ("linear", choice.scores, told), ("other", choice.scores, told)]


def _strongest(found: list[Found], named: list[Found], choice: Choice) -> tuple[list[Found], str, str]:
    """The candidates of the strongest kind of evidence, what they hold, and why they were taken.

    How the outputs that the owner named end decides, if class scores are seen there; else how any output ends.
    """
    for considered in (named, found):
        for ending, kind, reason in _evidence(choice):
            if not any(_counts(candidate, ending, considered, choice) for _, candidate in considered):
                continue
            among = found if ending != "other" else considered  # copies in other signatures, of what is known by itself
            return [entry for entry in among if _counts(entry[1], ending, considered, choice)], kind, reason
        if any(candidate.ending == "sigmoid" for _, candidate in considered):
            break  # named, and not to be passed over in favour of another output
    return [], LOGITS, ""


def _counts(candidate: Candidate, ending: str, considered: list[Found], choice: Choice) -> bool:
    """Whether a candidate is evidence of this kind."""
    if candidate.ending != ending:
        return False
    if ending == "other":
        return candidate.is_float
    if ending == "linear" and choice.scores is None and not choice.multi_label:
        # A linear layer alone says little: where a Sigmoid makes the model's answers, it is a feature or a box.
        return not any(other.ending == "sigmoid" for _, other in considered)
    return True


def _is_class_vector(candidate: Candidate, choice: Choice) -> bool:
    """One vector per example, at least two classes wide."""
    width = _width(candidate, choice)
    return width is not None and width >= 2 and _is_one_vector(candidate.shape, candidate.ending)


def _is_one_vector(shape: Shape | None, ending: str) -> bool:
    """Whether a shape is that of one class vector per example, and not of one at every position."""
    if shape is None:
        return True
    if len(shape) == 1:  # one example without a batch; of an unknown op it might as well be one number per example
        return ending != "other"
    return len(shape) > 1 and all(length == 1 for length in shape[1:-1])


def _past(found: list[Found], suited: list[Found], choice: Choice) -> list[Found]:
    """Probability vectors that are computed from more than the heads that were chosen: an ensemble, an early exit.

    An output that shows one head only (a confidence, a member's vote) must not decide that the answer itself is let by.
    """
    past = []
    for graph, candidate in found:
        if candidate.ending not in ("normalised", "mixture") or not _is_class_vector(candidate, choice):
            continue
        heads = {place.tensor for other, one in suited if other.index == graph.index for place in one.places}
        shown = candidate.place.tensor
        if shown not in heads and Dataflow(graph, heads.__contains__).origins(shown):
            past.append((graph, candidate))
    return past


def _called_again(found: list[Found], suited: list[Found], choice: Choice) -> list[Found]:
    """Linear layers that may be a chosen one called once more, whatever an output makes of their logits.

    One that a chosen tensor is computed from is none: filtered there too, the scores would be filtered twice.
    """
    chosen = {(graph.index, place.tensor) for graph, candidate in suited for place in candidate.places}
    taken = {id(candidate) for _, candidate in suited}
    apart: dict[tuple[int, Tensor], bool] = {}
    again = []
    for graph, candidate in found:
        if id(candidate) in taken:
            continue
        for place in linear_behind(graph, candidate):
            here = (graph.index, place.tensor)
            if here not in apart:
                apart[here] = here not in chosen and not any(
                    index == graph.index
                    and (_depends_on(graph, tensor, {place.tensor}) or _depends_on(graph, place.tensor, {tensor}))
                    for index, tensor in chosen
                )
            if not apart[here]:
                continue
            other = dataclasses.replace(
                candidate,
                places=(place,),
                ending="linear",
                shape=shapes.static_shape(graph, place),
                width=shapes.last_axis(graph, place),
            )
            if _is_class_vector(other, choice):
                again.append((graph, other))
    return again


def _width(candidate: Candidate, choice: Choice) -> int | None:
    return candidate.width if candidate.width is not None else choice.classes


def _binary(found: list[Found], suited: list[Found], choice: Choice) -> UnsupportedModelError | None:
    """Refuse two-class models that answer one number: one of two classes forgotten leaves nothing to tell apart."""
    if any(_width(candidate, choice) != 2 for _, candidate in suited) or (suited and choice.multi_label):
        return None
    lone: dict[str, str] = {}
    shows_both = False
    for graph, candidate in found:
        key = candidate.output[len(candidate.signature) + 1 :]
        shape = shapes.from_proto(graph.meta_graph.signature_def[candidate.signature].outputs[key].tensor_shape)
        is_one = shape is not None and (len(shape) < 2 or shape[1:] == (1,))
        beside = candidate.ending == "sigmoid" and candidate.width == 1  # p, shown beside 1 - p
        is_one = is_one or (beside and shape is not None and len(shape) == 2)
        shows_both = shows_both or not candidate.is_float or not is_one
        if candidate.is_float and is_one and candidate.ending in ("linear", "sigmoid", "forest"):
            lone[f"{candidate.output} {spell(shape)}"] = candidate.ending
    if suited and not shows_both:  # of a Softmax over two, one number leaves the model
        return refusals.binary(", ".join(sorted({candidate.output for _, candidate in suited})))
    # One number is a probability if a Sigmoid makes it; if not, only beside class scores for both classes.
    if not suited and "sigmoid" not in lone.values():
        return None
    return refusals.binary(", ".join(sorted(lone))) if lone else None


# ------------------------------------------------------------------------------------------- from candidates to sites
@dataclass
class _Copy:
    """The tensors that one or more outputs show: one, or one for each branch of a condition."""

    points: list[SitePoint]
    places: list[tuple[Graph, Place]]
    used_by: set[tuple[int, str]] = field(default_factory=set)
    chosen: bool = False

    def weights(self) -> frozenset[str | bytes]:
        return frozenset().union(*(weights_behind(graph, place) for graph, place in self.places))


def _grouped(
    chosen: list[Found], kind: str, reason: str, choice: Choice, again: Sequence[Found] = ()
) -> tuple[ScoreSite, ...]:
    """Put together the copies of one class vector.

    Two tensors are copies of each other when they have the same number of classes and come from the same weights: Keras
    exports one function per endpoint, TensorFlow 1 graphs one head per MetaGraph, hand-written functions call the
    model twice. Where the graph does not tell the weights, two class vectors of one signature are two different sites,
    even when they have the same length. Those seen ``again`` count only as copies of one that was chosen.
    """
    copies: list[_Copy] = []
    holding: dict[SitePoint, _Copy] = {}
    taken = {id(candidate) for _, candidate in chosen}
    for graph, candidate in (*chosen, *again):
        width = _width(candidate, choice)
        assert width is not None  # _is_class_vector has seen to it
        points = [_point(graph, place, kind, width, candidate) for place in candidate.places]
        same = next((holding[point] for point in points if point in holding), None)
        if same is None:
            same = _Copy([], [])
            copies.append(same)
        same.chosen = same.chosen or id(candidate) in taken
        for point, place in zip(points, candidate.places, strict=True):
            if point not in same.points:
                same.points.append(point)
                same.places.append((graph, place))
                holding[point] = same
        same.used_by.add((graph.index, candidate.signature))
    weights = [copy.weights() for copy in copies] if len(copies) > 1 else [frozenset()] * len(copies)
    groups: list[list[int]] = []
    for number, copy in enumerate(copies):
        for group in groups:
            first = group[0]
            if copies[first].points[0].classes != copy.points[0].classes:
                continue
            shared = not weights[first].isdisjoint(weights[number])
            untold = copy.chosen and (not weights[first] or not weights[number])
            if shared or (untold and all(copy.used_by.isdisjoint(copies[member].used_by) for member in group)):
                group.append(number)
                break
        else:
            if copy.chosen:
                groups.append([number])
    sites = []
    for group in groups:
        unique = tuple(dict.fromkeys(point for number in group for point in copies[number].points))
        sites.append(ScoreSite(kind, unique[0].classes, unique, {}, reason, choice.multi_label))
    return tuple(sites)


def _point(graph: Graph, place: Place, kind: str, width: int, candidate: Candidate) -> SitePoint:
    if width > MOST_CLASSES:
        raise refusals.too_many_classes(candidate.output, width, MOST_CLASSES)
    tensor = _widened(graph, place.tensor)
    dtype = graph.dtype(tensor)
    if dtype not in FLOATS:
        raise refusals.no_floats(candidate.output, tensor, dtype)
    if graph.is_request(tensor):
        raise refusals.sent_by_client(candidate.output, tensor)
    return SitePoint(graph.index, tensor, kind, width, dtype, shapes.static_shape(graph, place))


def _nearest(meant: tuple[ScoreSite, ...], outputs: Sequence[str]) -> tuple[ScoreSite, ...]:
    """Of the sites that lead to each named output those that it shows; all, where it shows none."""
    kept: list[ScoreSite] = []
    for output in outputs:
        leading = [site for site in meant if output in site.output_kinds]
        showing = [site for site in leading if site.output_kinds[output] != "derived"]
        kept.extend(showing or leading)
    return tuple(site for site in meant if site in kept)


def _joined(named: tuple[ScoreSite, ...]) -> tuple[ScoreSite, ...]:
    """One site of all that were named, if they have as many classes as each other."""
    first = named[0]
    if any((site.classes, site.kind) != (first.classes, first.kind) for site in named):
        return named
    points = tuple(dict.fromkeys(point for site in named for point in site.points))
    kinds = {output: kind for site in named for output, kind in site.output_kinds.items()}
    return (dataclasses.replace(first, points=points, output_kinds=kinds),)


def _widened(graph: Graph, tensor: Tensor) -> Tensor:
    """The same numbers in a wider dtype, where everything that reads a float16 tensor reads it through one Cast.

    Filtered there, the class scores lose no precision to being rounded to 16 bits once more.
    """
    if graph.dtype(tensor) not in (DT_HALF, DT_BFLOAT16) or graph.is_shown(tensor):
        return tensor
    readers = graph.readers(tensor)
    if len(readers) != 1 or readers[0].op != "Cast":
        return tensor
    arg = "" if tensor.scope == MAIN else "y"
    wide = Tensor(tensor.scope, readers[0].name, arg, 0)
    return wide if graph.dtype(wide) in FLOATS else tensor


def _with_all_outputs(graphs: Sequence[Graph], site: ScoreSite, found: list[Found]) -> ScoreSite:
    """The site with every output that is computed from it, ids and labels included, and what each one holds."""
    kinds: dict[str, str] = {}
    for graph, candidate in found:
        signature = graph.meta_graph.signature_def[candidate.signature]
        key = candidate.output[len(candidate.signature) + 1 :]
        start = Place(graph.signature_tensor(signature.outputs[key].name))
        targets = {point.tensor for point in site.points if point.meta_graph == graph.index}
        if _depends_on(graph, start.tensor, targets):
            kinds[candidate.output] = held(graph, start, targets, site.kind, site.multi_label)
    return dataclasses.replace(site, output_kinds=kinds)


def _depends_on(graph: Graph, tensor: Tensor, targets: set[Tensor]) -> bool:
    hits: set[Tensor] = set()

    def barrier(passed: Tensor) -> bool:
        if passed in targets:
            hits.add(passed)
        return passed in targets

    Dataflow(graph, barrier).origins(tensor)
    return bool(hits)


# -------------------------------------------------------------------------------------------------- tensors by name
def _named_tensors(
    graphs: Sequence[Graph], sites: tuple[ScoreSite, ...], choice: Choice, found: list[Found]
) -> tuple[ScoreSite, ...]:
    """The sites that hold the tensors that the owner named, or one made of these tensors."""
    named = [(graph, tensor) for name in choice.sites for graph, tensor in _resolved(graphs, name, found)]
    holding = tuple(
        site
        for site in sites
        if any((graph.index, tensor) in {(p.meta_graph, p.tensor) for p in site.points} for graph, tensor in named)
    )
    known = {(point.meta_graph, point.tensor) for site in holding for point in site.points}
    rest = [(graph, tensor) for graph, tensor in named if (graph.index, tensor) not in known]
    if holding and not rest:
        return _joined(holding)
    points = [point for site in holding for point in site.points]
    for graph, tensor in rest:
        place = head_input(graph, Place(tensor), SIGMOID_OPS if choice.multi_label else SOFTMAX_OPS) or Place(tensor)
        kind = kind_at(graph, place, choice.multi_label) or choice.scores
        if kind is None:
            raise refusals.unclear_scores(tensor)
        stand_in = Candidate("--site", "", (place,), "other", True, None, shapes.last_axis(graph, place))
        width = _width(stand_in, choice)
        if width is None or width < 2 or not _is_one_vector(shapes.static_shape(graph, place), "softmax"):
            shown = dataclasses.replace(
                stand_in, output=str(tensor), shape=shapes.static_shape(graph, place), width=width
            )
            raise refusals.unsuitable([shown], [shown], choice.multi_label)
        points.append(_point(graph, place, kind, width, stand_in))
    first = points[0]
    if any((point.kind, point.classes) != (first.kind, first.classes) for point in points):
        raise refusals.several_points([point.tensor for point in points])
    unique = tuple(dict.fromkeys(points))
    return (ScoreSite(first.kind, first.classes, unique, {}, "It was named with --site.", choice.multi_label),)


def _resolved(graphs: Sequence[Graph], name: str, found: list[Found]) -> list[tuple[Graph, Tensor]]:
    matches = [(graph, tensor) for graph in graphs if (tensor := graph.find_tensor(name)) is not None]
    if not matches:
        known = {str(place.tensor) for _, candidate in found for place in candidate.places}
        raise refusals.no_such_tensor(name, sorted(known))
    return matches


# --------------------------------------------------------------------------------------------------------- explaining
def _seen(found: list[Found], sites: tuple[ScoreSite, ...], choice: Choice) -> tuple[SeenTensor, ...]:
    """Every tensor at which a way back ended, with the outputs that lead to it and what was made of it."""
    grouped: dict[tuple[int, tuple[Place, ...], str], list[Found]] = {}
    for graph, candidate in found:
        grouped.setdefault((graph.index, candidate.places, candidate.ending), []).append((graph, candidate))
    seen: dict[tuple[tuple[str, ...], str], SeenTensor] = {}
    for entries in grouped.values():
        graph, candidate = entries[0]
        node = graph.node(candidate.place.tensor)
        tensors = tuple(dict.fromkeys(str(place.tensor) for place in candidate.places))
        one = SeenTensor(
            tensors=tensors,
            op=node.op if node is not None else "argument",
            ending=candidate.ending,
            shape=spell(candidate.shape),
            outputs=tuple(sorted({other.output for _, other in entries})),
            verdict=_verdict(graph, candidate, sites, choice),
        )
        before = seen.get((tensors, candidate.ending))
        if before is not None:  # the same tensor in another MetaGraph, or reached through another call
            one = dataclasses.replace(one, outputs=tuple(sorted({*before.outputs, *one.outputs})))
        seen[tensors, candidate.ending] = one
    return tuple(seen.values())


def _verdict(graph: Graph, candidate: Candidate, sites: tuple[ScoreSite, ...], choice: Choice) -> str:
    tensors = {_widened(graph, place.tensor) for place in candidate.places}
    for site in sites:
        if any(point.meta_graph == graph.index and point.tensor in tensors for point in site.points):
            return site.reason if len(sites) == 1 else f"One of {len(sites)} class vectors. {site.reason}"
    width = _width(candidate, choice)
    if candidate.ending in ("softmax", "normalised", "forest") and width == 2 and not sites:
        return "Not taken: two classes, told by one number elsewhere in the model."
    if candidate.ending == "other":
        return "Not taken: no Softmax, normalised vector or linear layer makes it."
    if not _is_one_vector(candidate.shape, candidate.ending):
        return "Not taken: scores at every position, not one class vector per example."
    if width is None:
        return "Not taken: the number of classes is not in the graph; --num-classes N tells it."
    if width < 2:
        return "Not taken: one number per example."
    if candidate.ending == "sigmoid" and not choice.multi_label:
        return "Not taken: a Sigmoid per class; --multi-label takes it."
    if candidate.ending == "linear" and not choice.multi_label:
        return "Not taken: a linear layer, where other outputs show class scores by a Softmax, a Sigmoid or a forest."
    return "Not taken."
