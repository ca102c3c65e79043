"""The report of an evaluation: one HTML page that needs nothing beside itself, made of evaluation.json alone.

Whatever comes from files (labels, paths, names of candidates) is escaped where it enters the page, in :func:`_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import PurePath
from typing import Any

from mpru_tf.evaluation.figures import Series, histogram, roc
from mpru_tf.evaluation.style import STYLE

Values = Mapping[str, Any]

_MANY = 12
"""Classes of which a heat map shows all; of more, it shows the :data:`_TOP` that get most."""
_TOP = 10
_PANELS = 6
"""Forgotten classes that are shown at once; the others fold away, and have no column of their own."""
_BARS = 24
_NAMED, _NAMED_LENGTH = 4, 44
"""Forgotten classes that the title names, and how many letters that may take; the facts list :data:`_LISTED`."""
_LISTED = 30

_SERIES = (("unfiltered", "before", "before"), ("unlearned", "after", "after"), ("retrained", "retrained", "retrained"))
_SIGNALS = {"confidence": "confidence", "entropy": "entropy", "modified_entropy": "modified entropy"}
_DASH = '<td class="soft">&ndash;</td>'


def page(evaluation: Values) -> str:
    """The report as one HTML document.

    Args:
        evaluation: what :func:`mpru_tf.evaluation.evaluate.evaluate` returned, or evaluation.json holds.
    """
    evaluation = without_twin(evaluation)
    parts = (_facts, _against_retraining, _where_they_go, _confidence, _per_class, _membership, _nearest, _limits)
    title = _text(f"Does it forget {_named(evaluation)}?")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        f"{_verdict(evaluation)}</header>\n<main>\n{''.join(part(evaluation) for part in parts)}</main>\n"
        f"<footer>mpru_tf {_text(evaluation['mpru_tf'])}. All figures are in evaluation.json beside this page.</footer>"
        "\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------------------------------------------------- verdict
def verdict(evaluation: Values) -> list[str]:
    """What came out, in sentences; the first one says it all."""
    answers = evaluation["answers"]
    ours, before, retrained = (answers.get(name) for name in ("unlearned", "unfiltered", "retrained"))
    who = _version(evaluation)
    what = _named(evaluation) if len(evaluation["forgotten"]) == 1 else "the forgotten classes"
    sentences = []
    apart = ours["forgotten"]
    if apart is not None:
        distance, floor = apart["kl"], (evaluation["floor"] or {}).get("forgotten")
        if floor is None:
            sentences.append(f"On examples of {what}, {who} is {_number(distance)} from a retrained model (KL).")
        elif distance <= floor["kl"]:
            sentences.append(
                f"On examples of {what}, {who} is no further from a retrained model than another retrained model is."
            )
        else:
            times = distance / floor["kl"] if floor["kl"] > 0 else None
            far = f"{times:.1f} times as far" if times is not None and times < 1000 else "much further"
            sentences.append(
                f"On examples of {what}, {who} is {far} from a retrained model {'as' if 'times' in far else 'than'} "
                "another retrained model is."
            )
        others = {
            "another retrained model": floor,
            "renormalising alone": answers.get("renormalize", {}).get("forgotten"),
            "the unfiltered model": before["forgotten"],
        }
        told = [f"{_number(one['kl'])} for {name}" for name, one in others.items() if one is not None]
        sentences.append(f"The divergence (KL) is {_number(distance)}, against {', '.join(told)}.")
        rivals = [
            one["forgotten"]["kl"]
            for name, one in answers.items()
            if name not in ("unlearned", "unfiltered", "retrained")
        ]
        better = sum(kl < distance - 1e-6 for kl in rivals)
        if rivals:
            place = "None is nearer" if not better else f"{better} of them {'is' if better == 1 else 'are'} nearer"
            sentences.append(f"Of {len(rivals)} other ways to forget that were compared: {_lower(place)}.")
    elif ours["accuracy_forgotten"] is not None:
        sentences.append(
            f"{_upper(who)} takes {_percent(ours['accuracy_forgotten'])} of the examples of {what} for what they are; "
            "whether it answers as a model that never saw them would, only a retrained model could show."
        )
    else:
        sentences.append(f"There are no examples of {what} in the data, so little can be said.")
    if ours["accuracy_retained"] is not None:
        known = {"before": before, "retrained": retrained}
        told = [f"{name} {_percent(one['accuracy_retained'])}" for name, one in known.items() if one is not None]
        sentences.append(
            f"Accuracy on the retained classes: {_percent(ours['accuracy_retained'])} ({', '.join(told)})."
        )
    return sentences


def _verdict(evaluation: Values) -> str:
    first, *others = verdict(evaluation)
    accuracy = evaluation["answers"]["unlearned"]["accuracy_forgotten"]
    bad = " bad" if accuracy is not None and evaluation["unlearned"]["method"] is not None and accuracy > 0 else ""
    rest = f"<p>{_text(' '.join(others))}</p>" if others else ""
    return f'<div class="verdict{bad}"><p class="first">{_text(first)}</p>{rest}</div>\n'


# ---------------------------------------------------------------------------------------------------------- sections
def _method(evaluation: Values) -> str:
    method = evaluation["method"]
    if method is not None and evaluation["temperature"] is not None:
        method = f"{method}, temperature {evaluation['temperature']:g}"
    in_weights = evaluation["unlearned"]["unlearned_in_weights"]
    if not in_weights:
        return method or "not a filter of ours (no manifest)"
    if not method:
        return "UNSIR in the weights, no filter"
    by_unsir = ", ".join(_class(evaluation, c) for c in in_weights)
    return f"UNSIR in the weights ({by_unsir}), and on top a filter ({_all_forgotten(evaluation)}): {method}"


def _all_forgotten(evaluation: Values) -> str:
    names = [_class(evaluation, c) for c in evaluation["forgotten"]]
    return ", ".join(names[:_LISTED]) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _facts(evaluation: Values) -> str:
    data, unlearned = evaluation["data"], evaluation["unlearned"]
    gone = sum(data["per_class"][c] for c in evaluation["forgotten"])
    listed, count = _all_forgotten(evaluation), len(evaluation["forgotten"])
    facts: list[tuple[str, str]] = [
        ("Forgotten", f"{_text(listed)}; {count} of {evaluation['classes']} classes"),
        ("Method", _text(_method(evaluation))),
        ("Version judged", _source(unlearned)),
        ("Original", _source(evaluation["original"])),
    ]
    for key, name in (("retrained", "Retrained"), ("second_retrained", "Retrained again")):
        if evaluation[key] is not None:
            facts.append((name, _source(evaluation[key])))
    facts.append(("Test examples", f"{data['test']:,} in {_text(data['file'])}, {gone:,} of forgotten classes"))
    if data["train"]:
        facts.append(("Training examples", f"{data['train']:,} of those in {_text(data['train_file'])}"))
    if unlearned["created"] is not None:
        facts.append(("Forgotten on", _text(_moment(unlearned["created"]))))
    facts.append(("Evaluated on", _text(_moment(evaluation["created"]))))
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    redacted = "<p>The names of the forgotten classes are redacted.</p>" if evaluation["redacted"] else ""
    return f'<section id="what">\n<h2>What was forgotten</h2>\n{redacted}<dl class="facts">{rows}</dl>\n</section>\n'


def without_twin(evaluation: Values) -> Values:
    """The evaluation without the baseline that the judged version is itself: two rows alike tell nothing."""
    answers, method = evaluation["answers"], evaluation["method"]
    if method not in answers or not _alike(answers["unlearned"], answers[method]):
        return evaluation
    return {**evaluation, "answers": {name: one for name, one in answers.items() if name != method}}


def _alike(one: Values, other: Values) -> bool:
    """Whether two sets of answers are the same, by how far each is from the original."""
    for part in ("retained", "forgotten"):
        a, b = one["to_original"][part], other["to_original"][part]
        if (a is None) != (b is None) or (a is not None and any(abs(a[key] - b[key]) > 1e-5 for key in ("kl", "tv"))):
            return False
    return True


Column = tuple[str, str, str, Callable[[Values], "float | None"], Callable[[float], str]]


def _against_retraining(evaluation: Values) -> str:
    """The verdict table: every way to answer, the nearest to retraining first."""
    answers = evaluation["answers"]
    columns = [column for column in _columns(evaluation) if any(column[3](one) is not None for one in answers.values())]

    def order(name: str) -> tuple[float, ...]:
        one = answers[name]
        if one["forgotten"] is not None:
            return (name != "retrained", one["forgotten"]["kl"], name != "unlearned")
        return (name == "unfiltered", name != "unlearned", -(one["accuracy_retained"] or 0.0))

    rows = [(order(name), _row(evaluation, name, columns)) for name in answers]
    if evaluation["floor"] is not None and evaluation["floor"]["forgotten"] is not None:
        floor = evaluation["floor"]
        cells = "".join(
            _cell(column[3]({**_NOTHING, **floor}), column[4]) if column[0].startswith("KL") else _DASH
            for column in columns
        )
        head = '<th scope="row">another retrained model<span class="tag">the floor</span></th>'
        rows.append(((True, floor["forgotten"]["kl"], True), f'<tr class="floor">{head}{cells}</tr>'))
    body = "\n".join(html for _, html in sorted(rows, key=lambda row: row[0]))
    heads = "".join(f'<th scope="col">{name}<small>{sub}</small></th>' for name, sub, *_ in columns)
    explained = "".join(f"<div><dt>{name}, {sub}:</dt> <dd>{why}</dd></div>" for name, sub, why in _explained(columns))
    left_out = "".join(
        f"<p class='soft'>{_text(name)} was left out. {_text(reason)}</p>"
        for name, reason in evaluation["left_out"].items()
    )
    alike = (
        "<p class='soft'>Linear filtration moves all retained logits of an answer alike, so that its probabilities are "
        "those of renormalising.</p>\n"
        if "linear_filtration" in answers
        else ""
    )
    lead = (
        "All ways to answer, the nearest to the retrained model on top. The floor is the distance between two "
        "retrained models; what averages over seeds, as flatter answers do, can lie below it."
        if evaluation["floor"] is not None
        else "All ways to answer, the nearest to the retrained model on top."
        if evaluation["retrained"] is not None
        else "Without a retrained model, the ways to answer can only be compared with each other."
    )
    return (
        f'<section id="verdict">\n<h2>Against other ways to forget</h2>\n<p>{lead}</p>\n<div class="scroll"><table>'
        f'<thead><tr><th scope="col">answers</th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        f'<dl class="columns">{explained}</dl>\n{alike}{left_out}</section>\n'
    )


_NOTHING: Values = {
    **dict.fromkeys(("retained", "forgotten", "membership", "nearest_class", "accuracy_retained")),
    **dict.fromkeys(("accuracy_forgotten", "calibration_error_retained", "zrf")),
    "to_original": {"retained": None},
}


def _columns(evaluation: Values) -> list[Column]:
    reference = evaluation["answers"].get("retrained")

    def of(part: str, key: str) -> Callable[[Values], float | None]:
        return lambda one: None if one[part] is None else one[part][key]

    def moved(one: Values) -> float | None:
        apart = one["to_original"]["retained"]
        return None if apart is None else float(apart["tv"])

    def strongest(one: Values) -> float | None:
        return _strongest(one["membership"]) if reference is None else None  # then the gap says more

    def membership_gap(one: Values) -> float | None:
        if reference is None or not one["membership"] or not reference["membership"]:
            return None
        theirs = reference["membership"]
        gaps = [float(each["auc"] - theirs[signal]["auc"]) for signal, each in one["membership"].items()]
        return max(gaps, key=abs)

    def gap(one: Values) -> float | None:
        gaps = _gaps(one, reference)
        return max(gaps.values(), key=abs) if gaps else None

    return [
        ("KL", "forgotten", "mean KL(retrained || answers) on examples of forgotten classes; 0 is retraining itself.",
         of("forgotten", "kl"), _number),
        ("KL", "retained", "the same on examples of retained classes.", of("retained", "kl"), _number),
        ("agreement", "forgotten", "share of these examples that get the class that the retrained model gives them.",
         of("forgotten", "agreement"), _percent),
        ("ZRF", "forgotten", "zero-retrain-forgetting score: 1 is knowing nothing about these examples; best is what "
         "the retrained model has.", lambda one: one["zrf"], _number),
        ("accuracy", "retained", "share of examples of retained classes that are taken for what they are.",
         lambda one: one["accuracy_retained"], _percent),
        ("accuracy", "forgotten", "the same of forgotten classes; a filter makes it 0, whatever else it does.",
         lambda one: one["accuracy_forgotten"], _percent),
        ("calibration", "retained", "expected calibration error: how far confidence is from accuracy, in 15 bins.",
         lambda one: one["calibration_error_retained"], _number),
        ("moved", "retained", "mean total variation from the unfiltered answers: how much bystanders notice.",
         moved, _number),
        ("membership", "AUC", "the strongest attack that tells training from test examples of forgotten classes; 0.5 "
         "is guessing, and below it tells as much as above.", strongest, _number),
        ("membership", "gap", "by how much the AUC of an attack differs from that on the retrained model, for the "
         "attack where it differs most; 0 is best.", membership_gap, _signed),
        ("nearest class", "gap", "how much better than in the retrained model a forgotten class can be told from the "
         "class nearest to it, as a difference of AUCs; of several classes the largest.", gap, _signed),
    ]  # fmt: skip


def _explained(columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    return [(name, sub, why) for name, sub, why, *_ in columns]


def _row(evaluation: Values, name: str, columns: Sequence[Column]) -> str:
    one = evaluation["answers"][name]
    style = {"unlearned": "this", "retrained": "reference"}.get(name, "")
    is_reference = name == "retrained"
    cells = "".join(
        '<td>0<span class="tag">by definition</span></td>'
        if is_reference and column[0] == "KL"
        else _DASH
        if is_reference and (column[0] == "agreement" or column[1] == "gap")
        else _cell(column[3](one), column[4])
        for column in columns
    )
    return f'<tr class="{style}"><th scope="row">{_answers_name(evaluation, name)}</th>{cells}</tr>'


def _where_they_go(evaluation: Values) -> str:
    """One heat map per forgotten class: rows are classes, columns before, after, and retrained."""
    forgotten = evaluation["forgotten"]
    maps = [_heat_map(evaluation, place) for place in range(len(forgotten))]
    maps = [one for one in maps if one]
    if not maps:
        return ""
    shown = f'<div class="panels">{"".join(maps[:_PANELS])}</div>\n'
    if len(maps) > _PANELS:
        rest = "".join(maps[_PANELS:])
        shown += (
            f"<details><summary>{len(maps) - _PANELS} more forgotten classes</summary>"
            f'<div class="panels">{rest}</div></details>\n'
        )
    return (
        '<section id="destinations">\n<h2>Where examples of forgotten classes go</h2>\n<p>Share of the examples of a '
        "forgotten class by the class that is answered for them. A forgotten class that goes elsewhere than in the "
        f"retrained model gives itself away.</p>\n{shown}</section>\n"
    )


def _heat_map(evaluation: Values, place: int) -> str:
    answers, n = evaluation["answers"], evaluation["classes"]
    gone = evaluation["forgotten"][place]
    count = evaluation["data"]["per_class"][gone]
    if not count:
        return ""
    columns = [(name, answers[key]["destinations"][place]) for key, name, _ in _SERIES if key in answers]
    most = {c: max(shares[c] for _, shares in columns) for c in range(n)}
    if n <= _MANY:
        classes = [gone, *(c for c in range(n) if c != gone)]
    else:
        classes = [gone, *sorted((c for c in range(n) if c != gone and most[c] > 0), key=lambda c: -most[c])[:_TOP]]
    rows = []
    for c in classes:
        style = ' class="gone"' if c in evaluation["forgotten"] else ""
        name = _text(_class(evaluation, c))
        cells = "".join(_heat(shares[c]) for _, shares in columns)
        rows.append(f'<tr{style}><th scope="row" title="{name}"><span>{name}</span></th>{cells}</tr>')
    if len(classes) < n:
        cells = "".join(_heat(max(0.0, 1.0 - sum(shares[c] for c in classes))) for _, shares in columns)
        rows.append(f'<tr><th scope="row">{n - len(classes)} others</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{name}</th>' for name, _ in columns)
    title = f"{_text(_class(evaluation, gone))} <small>{count:,} examples</small>"
    return (
        f'<figure><figcaption>{title}</figcaption><table class="heat"><thead><tr><th scope="col">answered</th>{heads}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></figure>"
    )


def _heat(share: float) -> str:
    # Half of the colour at most: the number on it must be readable on light and on dark ground.
    shade = f' style="background:rgb(var(--heat) / {0.55 * share:.3f})"' if share > 0 else ""
    return f"<td{shade}>{_percent(share) if share > 0 else '&middot;'}</td>"


def _confidence(evaluation: Values) -> str:
    found = evaluation["mean_confidence_histograms"]
    figures = []
    for part, title in (("forgotten", "Examples of forgotten classes"), ("retained", "Examples of retained classes")):
        series = [
            Series(style, name, found["edges"], found[key][part])
            for key, name, style in _SERIES
            if key in found and found[key][part] is not None
        ]
        if series:
            figures.append(histogram(series, title, "largest probability in the answer"))
    return (
        '<section id="confidence">\n<h2>How sure the answers are</h2>\n<p>Share of examples by the largest probability '
        "in the answer. A model that never saw a class tends to be less sure about it.</p>\n"
        f'<div class="panels">{"".join(figures)}</div>\n</section>\n'
    )


def _per_class(evaluation: Values) -> str:
    answers = evaluation["answers"]
    ours = answers["unlearned"]["class_kl"]
    if ours is None:
        return ""
    marks = answers["renormalize"]["class_kl"] if "renormalize" in answers else [None] * len(ours)
    classes = [c for c, value in enumerate(ours) if value is not None]
    shown = classes
    if len(classes) > _BARS:
        shown = sorted(classes, key=lambda c: (c not in evaluation["forgotten"], -ours[c]))[:_BARS]
    largest = max((value for c in shown for value in (ours[c], marks[c]) if value is not None), default=0.0) or 1.0
    width = max(len(_class(evaluation, c)) for c in shown) + 1
    items = []
    for c in shown:
        style = ' class="gone"' if c in evaluation["forgotten"] else ""
        name = _text(_class(evaluation, c))
        mark = marks[c]
        mark = "" if mark is None else f'<span class="mark" style="left:{100 * mark / largest:.2f}%"></span>'
        items.append(
            f'<li{style}><span class="name" title="{name}">{name}</span><span class="track"><span class="bar" '
            f'style="width:{100 * ours[c] / largest:.2f}%"></span>{mark}</span>'
            f'<span class="value">{_text(_number(ours[c]))}</span></li>'
        )
    more = (
        f"<p class='soft'>{len(shown)} of {len(classes)} classes: the forgotten ones first, then those furthest "
        "away.</p>"
        if len(shown) < len(classes)
        else ""
    )
    key = (
        '<span class="swatch mark"></span>is what renormalising alone would give. '
        if marks[shown[0]] is not None
        else ""
    )
    return (
        '<section id="classes">\n<h2>Divergence from retraining, class by class</h2>\n<p>Mean KL(retrained || answers) '
        f'over the examples of each true class. <span class="swatch"></span> is this version; {key}</p>\n'
        f'<ol class="bars" style="--name:{width}ch">{"".join(items)}</ol>\n{more}</section>\n'
    )


def _membership(evaluation: Values) -> str:
    answers = evaluation["answers"]
    ours = answers["unlearned"]["membership"]
    head = '<section id="membership">\n<h2>Can training examples be told?</h2>\n'
    if not ours:
        return (
            f"{head}<p>Not tried: membership inference needs examples that the original was trained on, of the "
            "forgotten classes too (<code>--train-data</code>).</p>\n</section>\n"
        )
    figures = []
    for signal in ours:
        series = [
            Series(style, f"{name}, AUC {answers[key]['membership'][signal]['auc']:.3f}", *_curve(answers[key], signal))
            for key, name, style in _SERIES
            if key in answers and answers[key]["membership"]
        ]
        figures.append(roc(series, _upper(_SIGNALS.get(signal, signal))))
    heads = "".join(
        f'<th scope="col">{_text(_SIGNALS.get(signal, signal))}<small>AUC &plusmn; error, advantage</small></th>'
        for signal in ours
    )
    rows = []
    for name, one in answers.items():
        if one["membership"]:
            cells = "".join(
                f"<td>{each['auc']:.3f}<span class='tag'>&plusmn; {each['error']:.3f}, {each['advantage']:.3f}</span>"
                "</td>"
                for each in one["membership"].values()
            )
            style = {"unlearned": "this", "retrained": "reference"}.get(name, "")
            kept = one["membership_retained"]
            best = _cell(_strongest(kept), _number)
            rows.append(f'<tr class="{style}"><th scope="row">{_answers_name(evaluation, name)}</th>{cells}{best}</tr>')
    first = next(iter(ours.values()))
    return (
        f"{head}<p>The attacker sees one answer and guesses whether its example was in the training data: "
        f"{first['members']:,} training against {first['nonmembers']:,} test examples of forgotten classes. On the "
        "dotted diagonal nothing can be told. What counts is the gap to the retrained model, which was trained on none "
        f'of them.</p>\n<div class="panels">{"".join(figures)}</div>\n'
        f'<div class="scroll"><table><thead><tr><th scope="col">answers</th>{heads}<th scope="col">retained classes'
        f"<small>strongest AUC</small></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n</section>\n"
    )


def _curve(one: Values, signal: str) -> tuple[Sequence[float], Sequence[float]]:
    found = one["membership"][signal]
    return found["fpr"], found["tpr"]


def _nearest(evaluation: Values) -> str:
    answers = evaluation["answers"]
    tried = {name: one["nearest_class"] for name, one in answers.items() if one["nearest_class"]}
    head = '<section id="nearest">\n<h2>Can the forgotten class be told from its nearest class?</h2>\n'
    if "unlearned" not in tried:
        return f"{head}<p>Not tried: it needs at least ten examples of both.</p>\n</section>\n"
    shown = list(tried["unlearned"])[:_PANELS]
    told_from = {c: found["nearest"] for c, found in tried["unlearned"].items()}
    heads = "".join(
        f'<th scope="col">{_text(_class(evaluation, int(c)))}'
        f"<small>from {_text(_class(evaluation, told_from[c]))}</small></th>"
        for c in shown
    )
    many = len(shown) < len(evaluation["forgotten"])
    if many:
        heads += '<th scope="col">all<small>mean AUC</small></th>'
    rows = []
    for name, found in tried.items():
        gaps = _gaps(answers[name], answers.get("retrained"))
        cells = []
        for c in shown:
            if c not in found:
                cells.append(_DASH)
                continue
            gap = f", gap {_signed(gaps[c])}" if c in gaps and name != "retrained" else ""
            error = f"&plusmn; {found[c]['error']:.3f}"
            cells.append(f"<td>{found[c]['auc']:.3f}<span class='tag'>{error}{gap}</span></td>")
        if many:
            cells.append(f"<td>{sum(one['auc'] for one in found.values()) / len(found):.3f}</td>")
        style = {"unlearned": "this", "retrained": "reference"}.get(name, "")
        rows.append(f'<tr class="{style}"><th scope="row">{_answers_name(evaluation, name)}</th>{"".join(cells)}</tr>')
    whose = "retrained" if "retrained" in tried else "unfiltered"
    return (
        f"{head}<p>A linear attacker, fitted to answers with known classes, tells examples of a forgotten class from "
        f"those of the retained class that the {whose} model mostly takes them for. 0.5 is guessing. A retrained model "
        "answers unseen classes differently as well: its AUC is the part that no forgetting can avoid.</p>\n"
        f'<div class="scroll"><table><thead><tr><th scope="col">answers</th>{heads}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div>\n</section>\n"
    )


def _limits(evaluation: Values) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in evaluation["limits"])
    return f'<section id="limits">\n<h2>What this does not show</h2>\n<ul class="limits">{items}</ul>\n</section>\n'


# ---------------------------------------------------------------------------------------------------------- small parts
def _strongest(membership: Values | None) -> float | None:
    """The AUC of the attack that tells most."""
    return max((each["auc"] for each in membership.values()), key=lambda area: abs(area - 0.5)) if membership else None


def _gaps(one: Values, reference: Values | None) -> dict[str, float]:
    """By forgotten class, how much further than in the retrained model the attack on the nearest class gets."""
    if reference is None or not one["nearest_class"] or not reference["nearest_class"]:
        return {}
    theirs = reference["nearest_class"]
    return {c: found["auc"] - theirs[c]["auc"] for c, found in one["nearest_class"].items() if c in theirs}


def _class(evaluation: Values, index: int) -> str:
    labels = evaluation["labels"]
    label = None if labels is None else labels[index]
    return label if label else f"class {index}"


def _named(evaluation: Values) -> str:
    """The forgotten classes in running words, the first ones if they are many or their labels long."""
    forgotten = evaluation["forgotten"]
    names: list[str] = []
    for c in forgotten[:_NAMED]:
        name = _class(evaluation, c)
        name = name if name == f"class {c}" else f"“{name}”"
        if names and sum(map(len, names)) + len(name) > _NAMED_LENGTH:
            break
        names.append(name)
    more = len(forgotten) - len(names)
    if more:
        return f"{', '.join(names)} and {more} more {'classes' if more > 1 else 'class'}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _version(evaluation: Values) -> str:
    version = evaluation["unlearned"]["version"]
    return "this version" if version is None else f"version {version}"


def _answers_name(evaluation: Values, name: str) -> str:
    if name == "unlearned":
        method = evaluation["method"]
        return f'{_text(_version(evaluation))}<span class="tag">this one{": " + _text(method) if method else ""}</span>'
    if name == "unfiltered":
        return 'unfiltered<span class="tag">before</span>'
    if name == "retrained":
        return 'retrained<span class="tag">the reference</span>'
    return _text(name.replace("_", " "))


def _source(source: Values) -> str:
    """A version in words; of its path the end, which says enough to people who get the page from somebody else."""
    path = PurePath(source["path"])
    if source["answers"]:
        return f"answers in <code>{_text(path.name)}</code>"
    short = "/".join(path.parts[-2:]) if source["version"] is not None else path.name
    digest = source["saved_model_sha256"]
    shown = f', <span class="soft">SHA-256 <code>{_text(digest[:16])}&hellip;</code></span>' if digest else ""
    return f"<code>{_text(short)}</code>{shown}"


def _moment(created: str) -> str:
    """A time as ISO 8601 has it, for people; as it is if it is something else."""
    try:
        return f"{datetime.fromisoformat(created.replace('Z', '+00:00')).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return _DASH if value is None else f"<td>{_text(form(value))}</td>"


def _number(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return "<0.001" if value > 0 else ">-0.001"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float) -> str:
    # Only what is exactly nothing or everything is called so.
    return f"{100 * value:g} %" if value in (0, 1) else f"{100 * value:.1f} %"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _text(text: str) -> str:
    """Text of whatever origin, as it stands in a page; what is not printable is shown as its code."""
    seen = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return escape(seen, quote=True)
