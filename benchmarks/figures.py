"""README's figures, written from benchmarks/results: no figure is typed by hand.

    python benchmarks/figures.py        # put what the results say between README's two marks

The benchmarks call this when they have written new results; a test fails when README and the results differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpru_tf.filters import DEFAULT_METHOD

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
METHOD = HERE.parent / "docs" / "method.md"
BEGIN = "<!-- figures: written by benchmarks/figures.py from benchmarks/results -->"
END = "<!-- end of figures -->"

_TREES = """

XGBoost on Covertype, 7 x 100 trees, converted, asked in a C++ Session on one thread: speed as a ratio to XGBoost's own
`inplace_predict`, which took turns with it.

| backend | depth | {batches} |
|---|---|{rules}
{rows}

Forgetting a class in the converted model takes {forget:.0f} ms; the filter adds {cost} to a request of 256
rows. On disk the depth 6 model takes {ops:.0f} MiB (`ops`), {tfdf:.1f} MiB (`tfdf`), {xgboost:.1f} MiB (XGBoost's
JSON)."""

_TEXT = """\
A second version of a ResNet-50 ({size:.0f} MiB with both of Keras 3's copies of the weights), median of {runs} runs
that took turns in one process:

| way | seconds | added peak memory, MiB |
|---|---|---|
{rows}

That is {ratio:.2f} of `cp -r`, and {times:.0f} times faster than `tf.saved_model.load`, wrap, `tf.saved_model.save`.
The optional load check takes {check:.1f} s more. Absolute times are those of a small shared machine; look at the
ratios.

A CIFAR-10 ResNet-20 trained by others forgets "{label}": on the test set, top-1 accuracy on the classes that stay goes
from {top1_before:.4f} to {top1_after:.4f}, and the largest probability of the forgotten class from
{largest_before:.4f} to {largest_after}."""


_SERVING = """

`mpru-tf serve` under {clients} clients while {swaps} new versions were swapped in: {requests:,} requests, {failed}
failed, {mixed} answers neither wholly old nor wholly new; p99 {before:.0f} ms before the swaps and {during:.0f} ms
during them. Memory: {start:.0f} MiB before, {peak:.0f} at most.

CPU time for one request of one example, as a ratio to a bare `session.run` (1.00: the server costs nothing):

| model | gRPC | REST |
|---|---|---|
{rows}"""

_EXPERIMENTS = """

Against models retrained without the class: KL(retrained || answers) in nats, on test examples, and its excess over what
two retrained models differ by; by how much AUCs of attacks differ from those on retrained models (0 is best). The
paper's figures, of its own models, in brackets where it has published them; +- is the standard error over forgotten
classes.

{tables}

{shares}

{times}{waiting}"""

_UNSIR = """

UNSIR on {network} ({parameters:.1f} million weights), asked on {tested:,} test images of CIFAR-10 that no setting was
tuned on; steps as a share of those of a retraining of {epochs} epochs:

| forgotten | preset | forgotten, top-1 | retained, before | after | drop | share of a retraining |
|---|---|---|---|---|---|---|
{rows}

What is left of class {compared} for whoever holds the file (a linear probe of the penultimate layer, and steps of
fine-tuning on few examples until the class is back), with and without a filter on top:

| weights | filter | largest probability of the class | probe, AUC | steps until back to {within} |
|---|---|---|---|---|
{left}{compared_with_retraining}"""

_COLUMNS = (
    "kl_forgotten",
    "excess_forgotten",
    "kl_retained",
    "excess_retained",
    "accuracy_difference_retained",
    "mse_within_bound",
    "gap_membership",
    "gap_nearest_class",
)

_CONTENDERS = {
    "ops": "`ops`",
    "tfdf": "`tfdf`",
    "tfdf, generic": "as TF-DF writes it",
    "treelite": "treelite, compiled",
}


def result(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    values: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return values


def render_reexport() -> str:
    """The part about re-exports."""
    reexport, cifar10 = result("reexport"), result("cifar10_forget")
    seconds, peaks = reexport["median_seconds"], reexport["added_peak_mib"]
    before, after = cifar10["unfiltered"], cifar10["filtered"]["tempered"]
    rows = [f"| `{way}` | {seconds[way]:.3f} | {f'{peaks[way]:.0f}' if way in peaks else ''} |" for way in seconds]
    return _TEXT.format(
        size=reexport["model_bytes"] / 2**20,
        runs=reexport["runs"],
        rows="\n".join(rows),
        ratio=reexport["ratio_to_cp"],
        times=reexport["times_faster_than_load_wrap_save"],
        check=reexport["median_seconds_load_check"],
        label=cifar10["forgotten"],
        top1_before=before["retained_top1"],
        top1_after=after["retained_top1"],
        largest_before=before["largest_forgotten_probability"],
        largest_after=after["largest_forgotten_probability"],
    )


def render() -> str:
    """The section between the marks."""
    return render_reexport() + render_experiments() + render_unsir() + render_serving() + render_trees(result("trees"))


def render_experiments() -> str:
    """The part about retrained models."""
    paper = result("paper")
    measured = {name: result(name) for name in paper if (RESULTS / f"{name}.json").is_file()}
    tables = [_experiment(values, paper[name]) for name, values in measured.items()]
    times = "; ".join(
        f"{_titles(name)}: {values['runtime']['ratio']:.2f} times a masked softmax in NumPy, 1 / "
        f"{values['runtime']['retraining_ratio']:,.0f} of retraining (paper: 1 / "
        f"{paper[name]['retraining_seconds'] / paper[name]['seconds']:,.0f})"
        for name, values in measured.items()
    )
    missing = [_titles(name) for name in paper if name != "source" and name not in measured]
    return _EXPERIMENTS.format(
        tables="\n\n".join(tables),
        shares="\n".join(_excess(name, values["mean"]) for name, values in measured.items()),
        times=f"Time for a whole test set: {times}.",
        waiting=f" Not run yet, for want of an accelerator: {', '.join(missing)}." if missing else "",
    )


def render_unsir() -> str:
    """The part about unlearned weights."""
    return "".join(_unlearned(result(file.stem)) for file in sorted(RESULTS.glob("unsir_*.json")))


def _unlearned(measured: dict[str, Any]) -> str:
    rows = [
        f"| {', '.join(map(str, row['forgotten']))} | `{row['preset']}` | {row['after']['forgotten']:.4f} | "
        f"{row['before']['retained']:.4f} | {row['after']['retained']:.4f} | {row['drop']:.4f} | "
        f"{row['share_of_retraining']:.1%} |"
        for row in sorted(measured["unlearned"].values(), key=lambda row: row["preset"])
    ]
    left = []
    for name, row in measured["left_in_weights"].items():
        steps = row["relearning"]["steps_within"]
        tried = row["relearning"]["steps_tried"]
        rest = f"{row['probe']['auc']:.3f} | " + " / ".join(
            f"more than {tried}" if step is None else str(step) for step in steps.values()
        )
        left.append(f"| {name} | no | {row['largest_forgotten_probability']:.4f} | {rest} |")
        if name != "retrained":
            left.append(f"| {name} | yes | 0 | {rest} |")
    compared = _against_retraining(measured) if "retraining_seconds" in measured else ""
    anyone = next(iter(measured["left_in_weights"].values()))
    within = [f"{1 - float(alpha):.0%}" for alpha in anyone["relearning"]["steps_within"]]
    return _UNSIR.format(
        network=measured["network"],
        parameters=measured["parameters"] / 1e6,
        tested=measured["test_examples"],
        epochs=measured["retraining_epochs"],
        rows="\n".join(rows),
        compared=measured["compared"],
        left="\n".join(left),
        within=" / ".join(within),
        compared_with_retraining=compared,
    )


def _against_retraining(measured: dict[str, Any]) -> str:
    """How unlearned weights compare with retrained ones, in time and in how fast the class comes back."""
    took = measured["unlearned"][f"{measured['compared']} gentle"]["seconds_in_all"] / measured["retraining_seconds"]
    sentence = (
        f"\n\nUnlearning it with `gentle` took {took:.2f} of the time of that retraining (both beside other work)."
    )
    for alpha, index in measured["anamnesis_index"].items():
        told = [
            f"{name} {value if isinstance(value, str) else f'{value:.2f}'}"
            for name, value in index.items()
            if value is not None and name != "retrained"
        ]
        if told:
            sentence += (
                f" Anamnesis index (steps until {1 - float(alpha):.0%} are back, as a share of the retrained model's): "
                f"{', '.join(told)}."
            )
            break
    return sentence


def _titles(name: str) -> str:
    return {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "covertype": "Covertype"}[name]


def _excess(name: str, mean: dict[str, Any]) -> str:
    """How near the default came, in words."""
    ours, theirs = mean["methods"][DEFAULT_METHOD], mean["methods"]["renormalize"]
    over = ours["excess_forgotten"]
    told = [_with_error(part) for part in (ours["kl_forgotten"], mean["floor"]["kl_forgotten"], over)]
    wanted = "25%" if name.startswith("cifar") else "100%"
    retained = [f"{part['excess_retained']['mean']:.4f}" for part in (ours, theirs)]
    no_more = over["error"] is not None and over["mean"] <= over["error"]
    return (
        f"* {_titles(name)}: on forgotten examples, answers of `{DEFAULT_METHOD}` are {told[0]} from those of a "
        f"retrained model, and those of another retrained model {told[1]}. The excess of {told[2]} is "
        f"{over['mean'] / theirs['excess_forgotten']['mean']:.0%} of `renormalize`'s (wanted: at most {wanted})"
        f"{', and within its error of none' if no_more else ''}; on retained examples it is {retained[0]}, "
        f"`renormalize`'s {retained[1]} (wanted: not more)."
    )


def _with_error(part: dict[str, Any]) -> str:
    return f"{part['mean']:.3f}" + (f" +- {part['error']:.3f}" if part["error"] is not None else "")


def _experiment(values: dict[str, Any], paper: dict[str, Any]) -> str:
    """One experiment as a table of methods."""

    def cell(part: dict[str, Any], key: str) -> str:
        return _with_error(part[key]) if key in part else ""

    def published(key: str) -> str:
        found = paper.get(key)
        if found is None:
            return ""
        return f" ({' to '.join(f'{each:.3f}' for each in (found if isinstance(found, list) else [found]))})"

    mean, model = values["mean"], values["model"]
    described = f"XGBoost of depth {model['depth']}" if "xgboost" in model else f"ResNet-{model['depth']}"
    lines = [
        f"**{_titles(values['experiment'])}**, {described}, test accuracy {values['test_accuracy']:.3f}, forgotten in "
        f"turn: {', '.join(values['classes'])}; seeds {len(values['seeds'])} x {len(values['retrain_seeds'])}.",
        "",
        f"| answers | KL forgotten{published('kl_forgotten')} | excess | KL retained{published('kl_retained')} "
        f"| excess | accuracy retained, difference{published('accuracy_difference_retained')} "
        f"| MSE <= {values['mse_bound']:g} ({paper['mse_share']:.2f}) | membership, gap | nearest class, gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {"retrained, another seed": mean["floor"] | mean["retrained"], **mean["methods"]}
    for name, part in rows.items():
        cells = [cell(part, key) for key in _COLUMNS]
        lines.append(f"| {name if name.startswith('retr') else f'`{name}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_serving() -> str:
    """The part about the server."""
    swaps, rates = result("hot_swap"), result("serving_rate")["models"]
    return _SERVING.format(
        rows="\n".join(
            f"| {name} | {ways['gRPC']['cpu_ratio']:.2f} | {ways['REST']['cpu_ratio']:.2f} |"
            for name, ways in rates.items()
        ),
        before=swaps["periods"]["before"]["p99_ms"],
        during=swaps["periods"]["during"]["p99_ms"],
        start=swaps["memory"]["before_mib"],
        peak=swaps["memory"]["peak_mib"],
        **{key: swaps[key] for key in ("clients", "swaps", "requests", "failed", "mixed")},
    )


def render_trees(trees: dict[str, Any]) -> str:
    """The part about converted trees."""
    rows = []
    for backend in ("ops", "tfdf", "tfdf, generic", "treelite"):
        for depth, measured in trees["depths"].items():
            of_batch = measured["threads_1"]
            if backend in of_batch["1"]:
                ratios = " | ".join(f"{each[backend]['ratio_to_xgboost']:.2f}" for each in of_batch.values())
                rows.append(f"| {_CONTENDERS[backend]} | {depth} | {ratios} |")
    depth6 = trees["depths"]["6"]
    batches = list(depth6["threads_1"])
    return _TREES.format(
        batches=" | ".join(f"{int(batch):,} rows" if batch != "1" else "1 row" for batch in batches),
        rules="---|" * len(batches),
        rows="\n".join(rows),
        forget=depth6["seconds_to_forget"] * 1000,
        cost=" and ".join(f"{cost:.1%} (`{name}`)" for name, cost in depth6["filter_cost_at_256"].items()),
        **depth6["size_mib"],
    )


def render_method() -> str:
    """The figures of docs/method.md: one table per data set."""
    return "\n\n".join(_rules(name, seen) for name, seen in result("redistribution").items())


def _rules(name: str, seen: dict[str, Any]) -> str:
    lines = [
        f"**{_titles(name)}**, classes {', '.join(map(str, seen['classes']))}",
        "",
        "| rule | numbers | retained: KL | excess | forgotten: KL | excess |",
        "|---|---|---|---|---|---|",
    ]
    for rule, ways in seen["rules"].items():
        for way, values in ways.items():
            numbers = values["numbers"]
            if way == "other classes":
                fitted = "of other classes" if any(numbers) else ""
            else:
                kind = way if way == "as shipped" else f"of {way}"
                fitted = f"{kind}: {', '.join(f'{number:.2f}' for number in numbers)}"
                if not numbers:  # then all ways are one
                    fitted = "none" if way == "all data sets" else ""
            if fitted:
                lines.append(f"| {rule} | {fitted} | {_distances(values)} |")
    return "\n".join(lines)


def _distances(values: dict[str, Any]) -> str:
    cells = []
    for side in ("retained", "forgotten"):
        excess = f"excess_{side}"
        error = f" +- {values['errors'][excess]:.4f}" if "errors" in values else ""
        cells += [f"{values[f'kl_{side}']:.4f}", f"{values[excess]:.4f}{error}"]
    return " | ".join(cells)


def save(values: dict[str, Any], out: Path) -> None:
    """Write what a benchmark measured and, if that is one of the results kept here, what README shows of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if out.parent.resolve() == RESULTS:
        update()


def update() -> None:
    """Put the figures between the marks of each page."""
    for page, figures in ((README, render()), (METHOD, render_method())):
        put(figures, page)


def put(figures: str, page: Path) -> None:
    """Put figures between a page's marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update()
