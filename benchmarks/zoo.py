"""Try every SavedModel of a directory: is each filtered rightly, in every class, or refused with a reason?

    python benchmarks/zoo.py DIR [--json] [--classes all|K] [--repeat 5] [--out benchmarks/results/zoo.json]

DIR holds NAME/VERSION, as a server's base paths do. Each version is re-exported as `mpru-tf forget` does it, load check
included, into a temporary folder; nothing is written to DIR. Then each class is forgotten in turn, with the methods
'tempered' and 'renormalize' by turns, and the new version is asked in a Session what the original is asked. Required:

- the forgotten class has probability exactly 0 wherever class scores are shown;
- class scores are those of the NumPy reference, applied to what the original answers, within 1e-5 (float16: 5e-3), as
  probabilities; logits also as logits, relative to their size where that is above 1;
- ids, labels and ranked scores beside class scores follow the filtered scores and never name the forgotten class;
  neither do labels in signatures that show no class scores;
- no re-export takes more than a second of its own work (TensorFlow imported, load check apart).

Exit status 1 if one of them fails. A model that is refused is no failure. The times are of re-exports into the
temporary folder; where that lies on another file system than DIR, they include copying the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

LIMIT_SECONDS = 1.0
TOLERANCE, TOLERANCE_HALF = 1e-5, 5e-3
METHODS = ("tempered", "renormalize")
# Where less than this was retained, probabilities in float32 do not tell what the logits did.
SETTLED = 1e-30
SEEDS = 3  # requests per signature, of four rows each

Values = dict[str, npt.NDArray[Any]]
Kinds = dict[str, dict[str, str]]  # by signature and output key
Say = Callable[[str], None]


@dataclass
class Findings:
    """What asking the filtered versions of one model showed."""

    deviation: float | None = None
    wrong: list[str] = field(default_factory=list)
    unsettled_rows: int = 0
    derived: set[str] = field(default_factory=set)  # outputs that were held against the class scores beside them

    def compare(self, what: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> None:
        """Take note of the largest deviation, and complain if it is too large."""
        deviation = float(np.max(np.abs(got - expected), initial=0.0))
        self.deviation = max(self.deviation or 0.0, deviation)
        if not deviation <= tolerance:  # NaN is not
            self.wrong.append(f"{what} deviates from the reference by {deviation:.2g}")


# ------------------------------------------------------------------------------------------------------ one model
def try_model(path: Path, classes: int | None, repeat: int, say: Say) -> dict[str, Any]:
    """One row: what a version directory is, what forgetting in it showed, or why it was refused.

    Args:
        path: the version directory.
        classes: how many classes to forget in turn, evenly spread; None for all.
        repeat: re-exports to take the median time of.
        say: is told what is being done.
    """
    row: dict[str, Any] = {"name": f"{path.parent.name}/{path.name}"}
    with tempfile.TemporaryDirectory(prefix="mpru-zoo-") as scratch:
        try:
            _try(row, path, Path(scratch), classes, repeat, say)
        except Exception as error:  # noqa: BLE001  nothing but a refusal may come out; the other models are tried all the same
            row.setdefault("wrong", []).append(f"{type(error).__name__}: {error}")
        # Whoever tries the models elsewhere gets the same words.
        text = json.dumps(row).replace(f"{path.parent.parent}{os.sep}", "").replace(scratch, "NEW")
    return dict(json.loads(text))


def _try(row: dict[str, Any], path: Path, scratch: Path, classes: int | None, repeat: int, say: Say) -> None:
    import mpru_tf
    from mpru_tf.errors import MPRUError

    try:
        say("reading")
        inspection = mpru_tf.inspect(path)
        row["signatures"] = sorted(inspection.signatures)
        say("forgetting, with the load check")
        checked = mpru_tf.forget(path, [0], into=scratch / "checked")
    except MPRUError as error:
        row["refused"] = str(error)
        return
    (site,) = inspection.score_sites
    row |= {
        "site": [str(point.tensor) for point in site.points],
        "kind": site.kind,
        "classes": site.classes,
        "filtered_outputs": site.output_kinds,
        "leak_gate": checked.leak_gate,
        "load_check": checked.load_check,
        "files": checked.files,
        "wrong": [],
    }
    times = Times()
    for number in range(repeat):
        say(f"re-export {number + 1} of {repeat}")
        times.forget(path, 0, scratch / "timed")
        shutil.rmtree(scratch / "timed")
    row |= {"median_seconds": statistics.median(times.seconds), "seconds": list(times.seconds)}
    kinds = kinds_by_signature(inspection, site)
    row |= forget_in_turn(path, site, kinds, scratch, classes, times, say)
    slowest = max(times.seconds)
    row["slowest_seconds"] = slowest
    if slowest > LIMIT_SECONDS:
        processor = times.processor[times.seconds.index(slowest)]
        row["wrong"].append(f"a re-export took {slowest:.2f} s, {processor:.2f} of them on a processor")


@dataclass
class Times:
    """How long each re-export took: its own account of it, and what the processors spent on it."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def forget(self, path: Path, forgotten: int, into: Path, method: str | None = None) -> Path:
        """Re-export without the load check; returns the new version directory."""
        import mpru_tf

        before = time.process_time()
        result = mpru_tf.forget(path, [forgotten], method=method, into=into, load_check=False)
        self.processor.append(time.process_time() - before)
        self.seconds.append(result.seconds)
        return result.path


def kinds_by_signature(inspection: Any, site: Any) -> Kinds:
    """What the outputs computed from the class scores hold, by signature and key (either may hold a colon)."""
    kinds = {
        name: {
            key: site.output_kinds[f"{name}:{key}"]
            for key in signature["outputs"]
            if f"{name}:{key}" in site.output_kinds
        }
        for name, signature in inspection.signatures.items()
    }
    return {name: of for name, of in kinds.items() if of}


def forget_in_turn(
    path: Path, site: Any, kinds: Kinds, scratch: Path, classes: int | None, times: Times, say: Say
) -> dict[str, Any]:
    """Forget class after class, each from the original, and hold the answers against the reference."""
    import tensorflow as tf

    import mpru_tf
    from mpru_tf.errors import MPRUError
    from mpru_tf.saved_model.session import LoadedModel

    findings = Findings()
    turns = range(0, site.classes, -(-site.classes // classes) if classes else 1)
    asked: dict[str, list[tuple[Values, Values]]] = {}
    loads = "yes"
    say("asking the original")
    try:
        with LoadedModel(path) as original:
            asked = questions(original, kinds)
    except MPRUError as error:  # an op whose library is absent: edited all the same, but not loaded
        loads = f"skipped: {error}"
    names = label_names(path, site.classes, kinds, asked)
    for number, forgotten in enumerate(turns):
        say(f"class {forgotten} ({number + 1} of {len(turns)})")
        method = METHODS[number % len(METHODS)]
        version = times.forget(path, forgotten, scratch / "turn", method)
        spec = mpru_tf.make_filter(site.classes, [forgotten], method)
        try:
            if asked:
                with LoadedModel(version) as filtered:
                    for signature, pairs in asked.items():
                        for request, before in pairs:
                            after = filtered.run(signature, request)
                            about = Answer(signature, kinds[signature], before, after, names.get(signature))
                            judge(findings, about, spec, site.is_half)
        except (tf.errors.OpError, MPRUError) as error:
            findings.wrong.append(f"with class {forgotten} forgotten: {error}")
        shutil.rmtree(scratch / "turn")
    derived = {f"{name}:{key}" for name, of in kinds.items() for key, kind in of.items() if kind == "derived"}
    return {
        "loads": loads,
        "classes_tried": len(turns),
        "signatures_asked": sorted(asked),
        "signatures_not_asked": sorted(kinds.keys() - asked.keys()),
        "worst_deviation": findings.deviation,
        "unsettled_rows": findings.unsettled_rows,
        "derived_checked": sorted(findings.derived),
        "derived_not_checked": sorted(derived - findings.derived),
        "wrong": list(dict.fromkeys(findings.wrong)),
    }


def questions(original: Any, kinds: Kinds) -> dict[str, list[tuple[Values, Values]]]:
    """Requests that the original answers with numbers, and its answers, by signature computed from class scores."""
    found: dict[str, list[tuple[Values, Values]]] = {}
    for signature, of in kinds.items():
        keys = [key for key, kind in of.items() if kind != "derived"]
        if signature in original.signatures:
            pairs = [pair for seed in range(SEEDS) if (pair := question(original, signature, keys, seed)) is not None]
            if pairs:
                found[signature] = pairs
    return found


def question(original: Any, signature: str, keys: list[str], seed: int) -> tuple[Values, Values] | None:
    """The first made-up request of a seed that is answered with numbers."""
    import tensorflow as tf

    from mpru_tf import probes
    from mpru_tf.errors import MPRUError
    from mpru_tf.saved_model.graph import Graph

    for request in probes.requests(original.signatures[signature], Graph(original.meta_graph), seed):
        try:
            answer = original.run(signature, request)
        except (tf.errors.OpError, MPRUError, ValueError):
            continue
        if all(np.isfinite(np.asarray(answer[key], np.float64)).all() for key in keys):
            return request, answer
    return None


# --------------------------------------------------------------------------------------------------- one answer
@dataclass(frozen=True)
class Answer:
    """What a signature answered to one request, and what is known of its outputs.

    Attributes:
        signature: its key.
        kinds: what its outputs hold, by key.
        before: the original's answer.
        after: the filtered version's.
        names: labels of all classes, None if they are not known.
    """

    signature: str
    kinds: dict[str, str]
    before: Values
    after: Values
    names: list[bytes] | None = None


def judge(findings: Findings, answer: Answer, spec: Any, is_half: bool = False) -> None:
    """Hold the answer of a filtered version against the reference, applied to what the original answered."""
    (forgotten,) = spec.forgotten
    rows: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []  # probabilities before and after
    for key, kind in answer.kinds.items():
        raw, got = answer.before[key], answer.after[key]
        what = f"{answer.signature}:{key} with class {forgotten} forgotten"
        if (got.dtype, got.shape) != (raw.dtype, raw.shape):
            findings.wrong.append(f"{what} is {got.dtype} {got.shape}, not {raw.dtype} {raw.shape}")
            continue
        if kind == "derived":
            continue
        tolerance = TOLERANCE_HALF if is_half or raw.dtype.itemsize < 4 else TOLERANCE
        p, q = probabilities(raw, kind), probabilities(got, kind)
        rows.append((p, q))
        if np.any(q[..., forgotten] != 0.0):
            findings.wrong.append(f"{what} still gives it a probability of {np.max(q[..., forgotten]):.2g}")
        if kind == "logits":
            z, kept = spec.logits(raw), list(spec.retained)
            findings.compare(what, q, probabilities(z, kind), tolerance)
            size = np.maximum(1.0, np.abs(z[..., kept]))
            findings.compare(f"{what}, as logits,", got[..., kept] / size, z[..., kept] / size, tolerance)
        else:
            settled = p[..., list(spec.retained)].sum(axis=-1) > SETTLED
            findings.unsettled_rows += int(np.sum(~settled))
            findings.compare(what, q[settled], spec.probabilities(p)[settled], tolerance)
    for key, kind in answer.kinds.items():
        if kind == "derived" and answer.after[key].shape == answer.before[key].shape:
            if rows:
                judge_derived(findings, answer, key, forgotten, *rows[0])
            elif answer.before[key].dtype == np.object_:
                judge_labels(findings, answer, key, spec)


def probabilities(values: npt.NDArray[Any], kind: str) -> npt.NDArray[np.float64]:
    """Class scores of any kind as probabilities."""
    x = np.asarray(values, np.float64)
    if kind == "probabilities":
        return x
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float64)


def judge_derived(
    findings: Findings, answer: Answer, key: str, forgotten: int, p: npt.NDArray[Any], q: npt.NDArray[Any]
) -> None:
    """Ids, labels and ranked scores: what followed the class scores before has to follow the filtered ones now."""
    raw, got = answer.before[key], answer.after[key]
    output, classes = f"{answer.signature}:{key}", p.shape[-1]
    ranks = 1 if raw.ndim == p.ndim - 1 else raw.shape[-1] if raw.ndim == p.ndim else 0
    if not 0 < ranks <= classes:
        return
    raw, got = (values.reshape(*p.shape[:-1], ranks) for values in (raw, got))
    what = f"{output} with class {forgotten} forgotten"
    before = ids_of(raw, answer.names)
    if before is not None and follows(before, p):
        now = ids_of(got, answer.names)
        findings.derived.add(output)
        # With as many ranks as classes, the forgotten one comes last.
        if now is not None and np.any(now[..., : classes - 1] == forgotten):
            findings.wrong.append(f"{what} still names it")
        elif now is None or not follows(now, q):
            findings.wrong.append(f"{what} does not follow the filtered class scores")
    elif raw.dtype.kind == "f" and np.allclose(raw, ranked(p, ranks), atol=TOLERANCE):
        findings.derived.add(output)
        if not np.allclose(got, ranked(q, ranks), atol=TOLERANCE):
            findings.wrong.append(f"{what} does not show the ranked filtered class scores")


def judge_labels(findings: Findings, answer: Answer, key: str, spec: Any) -> None:
    """Labels without class scores beside them: none is that of the forgotten class."""
    before, now = ids_of(answer.before[key], answer.names), ids_of(answer.after[key], answer.names)
    if before is None or now is None or before.ndim == 0 or np.any(before < 0):
        return
    output, (forgotten,) = f"{answer.signature}:{key}", spec.forgotten
    findings.derived.add(output)
    if np.any(now < 0) or np.any(now[..., : spec.classes - 1] == forgotten):
        findings.wrong.append(f"{output} with class {forgotten} forgotten still names it, or no class at all")


def follows(ids: npt.NDArray[Any], p: npt.NDArray[Any]) -> bool:
    """Whether ids name the largest class scores, the largest first; either of two that are as good as equal."""
    if np.any((ids < 0) | (ids >= p.shape[-1])):
        return False
    named = np.take_along_axis(p, ids.astype(np.int64), axis=-1)
    return bool(np.allclose(named, ranked(p, ids.shape[-1]), atol=TOLERANCE))


def ranked(p: npt.NDArray[Any], ranks: int) -> npt.NDArray[Any]:
    return -np.sort(-p, axis=-1)[..., :ranks]


def ids_of(values: npt.NDArray[Any], names: list[bytes] | None) -> npt.NDArray[Any] | None:
    """The classes that ids or labels stand for, or None if that is not known."""
    if values.dtype.kind in "iu":
        return values
    if names is None or values.dtype != np.object_ or len(set(names)) != len(names):
        return None
    index = {name: number for number, name in enumerate(names)}
    return np.array([index.get(value, -1) for value in values.ravel()], np.int64).reshape(values.shape)


def label_names(
    path: Path, classes: int, kinds: Kinds, asked: dict[str, list[tuple[Values, Values]]]
) -> dict[str, list[bytes]]:
    """Labels of all classes, by signature: from an output that lists them, or else as found in the model."""
    from mpru_tf.errors import LabelsError
    from mpru_tf.labels import labels_of_model
    from mpru_tf.saved_model import bundle as bundles

    try:
        found = labels_of_model(path, bundles.read(path).graphs(), classes)
    except LabelsError:
        found = None
    names: dict[str, list[bytes]] = {}
    for signature, pairs in asked.items():
        if found is not None and found.labels is not None and len(found.labels) == classes:
            names[signature] = [label.encode() for label in found.labels]
        for key, values in pairs[0][1].items():
            is_list = values.dtype == np.object_ and values.ndim == 2 and values.shape[-1] == classes
            if is_list and key not in kinds[signature] and np.all(values == values[:1]):
                names[signature] = [bytes(label) for label in values[0]]
    return names


# ---------------------------------------------------------------------------------------------------- all models
def versions_in(folder: Path) -> Iterator[Path]:
    """Every NAME/VERSION of a directory."""
    from mpru_tf.versions import parse_version

    for base in sorted(child for child in folder.iterdir() if child.is_dir()):
        found = [(version, child) for child in base.iterdir() if (version := parse_version(child.name)) is not None]
        yield from (child for _, child in sorted(found) if child.is_dir())


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


HEADINGS = ("model", "site", "kind", "n", "signatures", "filtered", "gate", "loads", "deviation", "median s", "verdict")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    signatures = ", ".join(row.get("signatures", ()))
    if "refused" in row:
        return [row["name"], f"refused: {first_sentence(row['refused'])}", "", "", signatures, *[""] * 5, "refused"]
    if "loads" not in row:
        return [row["name"], "", "", "", signatures, *[""] * 5, "\n".join(row["wrong"])]
    deviation, loads = row["worst_deviation"], row["loads"]
    if not row["signatures_asked"] and loads == "yes":
        loads = "yes, but no request could be made up"
    return [
        row["name"],
        "\n".join(row["site"]),
        row["kind"],
        str(row["classes"]),
        signatures,
        "\n".join(row["filtered_outputs"]),
        row["leak_gate"],
        first_sentence(loads),
        "not asked" if deviation is None else f"{deviation:.1e}",
        f"{row['median_seconds']:.3f}",
        "\n".join(row["wrong"]) or ("filtered, not asked" if deviation is None else "right"),
    ]


def run(folder: Path, classes: int | None, repeat: int, as_json: bool) -> dict[str, Any]:
    """Try all models, showing each as it is done."""
    from rich.console import Console
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table

    messages, paths, rows = Console(stderr=True), list(versions_in(folder)), []
    if not paths:
        print(f"There is no model in {folder}. Models are looked for in NAME/VERSION below it.", file=sys.stderr)
        raise SystemExit(2)
    with messages.status("loading TensorFlow"):
        import tensorflow as tf

        import mpru_tf.layer  # noqa: F401  what the first re-export would import
    output = Console(quiet=as_json)
    if not output.is_terminal:
        output.width = 240
    table = Table(*HEADINGS, title="SavedModels tried", show_lines=True)
    with Live(table, console=output, auto_refresh=False, vertical_overflow="visible") as live:
        for number, path in enumerate(paths, 1):
            about = f"{number} of {len(paths)}: {path.parent.name}/{path.name}"

            def say(what: str, about: str = about) -> None:
                table.caption = escape(f"{about}: {what}")
                live.refresh()

            row = try_model(path, classes, repeat, say)
            rows.append(row)
            table.add_row(*(escape(cell) for cell in cells(row)), style=style(row))
            if not output.is_terminal:
                messages.print(escape(f"{about}: {cells(row)[-1]}"), highlight=False, soft_wrap=True)
        table.caption = None
    if not output.is_terminal:
        output.line()
    return {
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "limit_seconds": LIMIT_SECONDS,
        "tolerance": TOLERANCE,
        "passed": not any(row.get("wrong") for row in rows),
        "models": rows,
    }


def style(row: dict[str, Any]) -> str | None:
    return "dim" if "refused" in row else "red" if row["wrong"] else None


def summary(result: dict[str, Any]) -> str:
    """The result in words."""
    rows = result["models"]
    refused, wrong = sum("refused" in row for row in rows), sum(bool(row.get("wrong")) for row in rows)
    right = sum(row.get("worst_deviation") is not None and not row["wrong"] for row in rows)
    text = f"{right} filtered rightly, {wrong} wrongly, {refused} refused."
    if right + wrong + refused < len(rows):
        text += f" {len(rows) - right - wrong - refused} filtered, but not asked."
    timed = [row for row in rows if "slowest_seconds" in row]
    if timed:
        medians, slowest = [row["median_seconds"] for row in timed], max(row["slowest_seconds"] for row in timed)
        text += f" Median re-export {statistics.median(medians):.3f} s, the slowest of all {slowest:.3f} s"
        text += f" (limit {LIMIT_SECONDS:g} s)."
    return text


def count(text: str) -> int | None:
    """'all', or how many."""
    return None if text == "all" else max(1, int(text))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.add_argument("--classes", type=count, metavar="all|K", help="how many to forget in turn (default: all)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="re-exports to take the median time of")
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "zoo.json")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no directory")
    if args.repeat < 1:
        parser.error("--repeat takes 1 or more")
    from mpru_tf.console import hush_tensorflow

    hush_tensorflow()
    try:
        result = run(args.folder.resolve(), args.classes, args.repeat, args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print(summary(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
