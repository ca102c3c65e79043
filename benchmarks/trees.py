"""How fast does a converted forest answer, against XGBoost itself?

    python benchmarks/trees.py [--data covtype.npz] [--rounds 15] [--work build/trees] [--out results/trees.json]

Two XGBoost models of 7 x 100 trees, of depth 6 and of depth 10, are trained on Covertype (downloaded through
scikit-learn, or the arrays X and y of --data) and converted. In one process per number of threads, these take turns:

* `xgboost`: `Booster.inplace_predict`
* `ops`, `tfdf`: the two backends, each the SavedModel in a C++ Session, called as `Session.make_callable` does. The
  whole request is computed in the calling thread, which is what one thread means
* `ops, pool`: the same, handed over to the Session's own pool, as TensorFlow Serving's defaults do
* `ops, filtered`: a class forgotten
* `tfdf, generic`: a forest of all classes with a tensor per feature, as TF-DF itself would write it
* `treelite`: compiled to C by tl2cgen

Contenders whose package is not installed are left out, and said to be. Models are kept in --work and used again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

DEPTHS = (6, 10)
BATCHES = (1, 32, 256, 10_000)
THREADS = (1, 2)
TREES, TRAINING_ROWS, FORGOTTEN = 100, 200_000, 3
ROUND_SECONDS = 0.05

Rows = npt.NDArray[np.float32]


# ---------------------------------------------------------------------------------------------------- making the models
def load_data(path: Path | None) -> tuple[Rows, npt.NDArray[Any]]:
    if path is not None:
        with np.load(path) as file:
            return file["X"].astype(np.float32), file["y"]
    from sklearn.datasets import fetch_covtype

    x, y = fetch_covtype(return_X_y=True)
    return x.astype(np.float32), y - 1


def make_models(work: Path, data: Path | None) -> None:
    """Train, convert and compile what is not there yet. Each in a process of its own: they do not share threads."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "rows.npy").exists():
        x, _ = load_data(data)
        np.save(work / "rows.npy", x[300_000 : 300_000 + 5 * max(BATCHES)])
    for depth in DEPTHS:
        folder = work / f"depth{depth}"
        for step in ("train", "ops", "tfdf", "generic", "compile"):
            if (folder / f"{step}.done").exists():
                continue
            shutil.rmtree(folder / step, ignore_errors=True)  # of a run that was interrupted
            print(f"depth {depth}: {step}", flush=True)
            command = [sys.executable, __file__, "--make", step, "--work", str(folder), "--depth", str(depth)]
            subprocess.run([*command, *(["--data", str(data)] if data else [])], check=True)


def train(folder: Path, depth: int, data: Path | None) -> None:
    import xgboost

    folder.mkdir(exist_ok=True)
    x, y = load_data(data)
    settings = {"objective": "multi:softprob", "num_class": 7, "max_depth": depth, "tree_method": "hist", "eta": 0.3}
    rows = xgboost.DMatrix(x[:TRAINING_ROWS], y[:TRAINING_ROWS])
    xgboost.train(settings, rows, TREES).save_model(folder / "model.json")


def convert(folder: Path, backend: str) -> None:
    """Convert, and with the default backend also forget a class, as `mpru-tf` does."""
    import mpru_tf
    from mpru_tf.trees.backends import make_backend
    from mpru_tf.trees.export import write_saved_model
    from mpru_tf.trees.xgboost_model import read_xgboost

    if backend == "tfdf" and importlib.util.find_spec("tensorflow_decision_forests") is None:
        return
    forest = read_xgboost(folder / "model.json")
    version = folder / backend / "1"
    version.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    write_saved_model(forest, version, make_backend(forest, backend))
    seconds = time.perf_counter() - started
    note: dict[str, Any] = {"seconds_to_write": seconds}
    if backend == "ops":
        runs = [mpru_tf.forget(folder / backend / "1", [FORGOTTEN], into=folder / f"again{run}") for run in range(7)]
        note["seconds_to_forget"] = statistics.median(run.seconds for run in runs)
    mpru_tf.forget(folder / backend / "1", [FORGOTTEN], into=folder / f"filtered_{backend}")
    (folder / f"{backend}.json").write_text(json.dumps(note))


def build_generic(folder: Path) -> None:
    """One forest of all classes, as TF-DF writes it: an input per feature, its generic engine."""
    if importlib.util.find_spec("tensorflow_decision_forests") is None:
        return
    from mpru_tf.trees.tfdf_backend import import_tfdf
    from mpru_tf.trees.xgboost_model import read_xgboost

    tfdf = import_tfdf()
    forest = read_xgboost(folder / "model.json")
    node, condition, value = tfdf.py_tree.node, tfdf.py_tree.condition, tfdf.py_tree.value
    columns = [
        tfdf.py_tree.dataspec.SimpleColumnSpec(f"f{index}", tfdf.py_tree.dataspec.ColumnType.NUMERICAL)
        for index in range(forest.n_features)
    ]

    def grown(tree: Any, at: int, base: float) -> Any:
        left = int(tree.left[at])
        if left < 0:
            return node.LeafNode(value.RegressionValue(float(tree.values[at, 0]) + base))
        asked = condition.NumericalHigherThanCondition(
            columns[tree.feature[at]], float(tree.threshold[at]), missing_evaluation=not tree.default_left[at]
        )
        return node.NonLeafNode(asked, pos_child=grown(tree, left + 1, base), neg_child=grown(tree, left, base))

    builder = tfdf.builder.GradientBoostedTreeBuilder(
        path=str(folder / "generic"),
        objective=tfdf.py_tree.objective.ClassificationObjective(
            "class", classes=[str(n) for n in range(forest.outputs)]
        ),
        verbose=0,
    )
    for index, tree in enumerate(forest.trees):
        base = float(forest.base_margin[index]) if index < forest.outputs else 0.0
        builder.add_tree(tfdf.py_tree.tree.Tree(grown(tree, 0, base)))
    builder.close()


def compile_to_c(folder: Path) -> None:
    if importlib.util.find_spec("tl2cgen") is None:
        return
    import tl2cgen
    import treelite

    model = treelite.frontend.load_xgboost_model(str(folder / "model.json"))
    tl2cgen.export_lib(
        model,
        toolchain="gcc",
        libpath=str(folder / "treelite.so"),
        params={"parallel_comp": 32},
        nthread=2,
        options=["-O2"],
    )


# ------------------------------------------------------------------------------------------------------------ measuring
def saved_model(directory: Path, threads: int, pool: int) -> Callable[[Rows], Any]:
    """A SavedModel in a Session of so many threads. Pool -1: all in the calling thread; 0: handed to the Session's."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    if (directory / "assets").exists() and any((directory / "assets").iterdir()):
        from mpru_tf.trees.tfdf_backend import import_tfdf

        import_tfdf()
    v1 = tf.compat.v1
    graph = tf.Graph()
    config = v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    session = v1.Session(graph=graph, config=config)
    with graph.as_default():
        meta_graph = v1.saved_model.loader.load(session, ["serve"], str(directory))
    signature = meta_graph.signature_def["serving_default"]
    keys = sorted(signature.inputs)
    options = config_pb2.CallableOptions(
        feed=[signature.inputs[key].name for key in keys],
        fetch=[next(iter(signature.outputs.values())).name],
        run_options=v1.RunOptions(inter_op_thread_pool=pool),
    )
    call = session._make_callable_from_options(options)
    if len(keys) == 1:
        return lambda rows: call(rows)[0]
    columns = [int(key[1:]) for key in keys]  # only those of the features that some tree asks about
    return lambda rows: call(*np.ascontiguousarray(rows.T[columns]))[0]


def contenders(folder: Path, threads: int) -> dict[str, Callable[[Rows], Any]]:
    """What is there to be measured. Sessions come first: the first one decides TensorFlow's number of threads."""
    caller = -1 if threads == 1 else 0
    places = {
        "ops": (folder / "ops" / "1", caller),
        "ops, filtered": (folder / "filtered_ops" / "1", caller),
        "tfdf": (folder / "tfdf" / "1", caller),
        "tfdf, generic": (folder / "generic", caller),
    }
    if threads == 1:
        places["ops, pool"] = (folder / "ops" / "1", 0)
        places["tfdf, pool"] = (folder / "tfdf" / "1", 0)
    found = {name: saved_model(place, threads, pool) for name, (place, pool) in places.items() if place.exists()}
    import xgboost

    booster = xgboost.Booster({"nthread": threads})
    booster.load_model(folder / "model.json")
    found["xgboost"] = booster.inplace_predict
    if (folder / "treelite.so").exists():
        import tl2cgen

        compiled = tl2cgen.Predictor(str(folder / "treelite.so"), nthread=threads)
        found["treelite"] = lambda rows: compiled.predict(tl2cgen.DMatrix(rows))[:, 0]
    return found


def measure(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds per call of each contender and batch, taken in turns; and how far their answers are from XGBoost's."""
    rows = np.load(folder.parent / "rows.npy")
    calls = contenders(folder, threads)
    result: dict[str, Any] = {}
    for batch in BATCHES:
        parts = [rows[first * batch : (first + 1) * batch] for first in range(5)]
        want = calls["xgboost"](parts[0])
        repeats = {}
        for name, call in calls.items():
            difference = float(np.abs(call(parts[0]) - want).max()) if name != "ops, filtered" else 0.0
            if not difference < 1e-5:
                raise SystemExit(f"{name} answers something else: {difference}")
            started = time.perf_counter()
            for part in parts:
                call(part)
            repeats[name] = max(1, round(ROUND_SECONDS * 5 / (time.perf_counter() - started)))
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                started = time.perf_counter()
                for number in range(repeats[name]):
                    call(parts[number % 5])
                taken[name].append((time.perf_counter() - started) / repeats[name])
        result[str(batch)] = {
            name: {
                "rows_per_second": batch / statistics.median(seconds),
                "ratio_to_xgboost": statistics.median(
                    x / own for x, own in zip(taken["xgboost"], seconds, strict=True)
                ),
            }
            for name, seconds in taken.items()
        }
    return result


def measure_filter(folder: Path, backend: str) -> float:
    """What a filter adds to a request of 256 rows, as a share: the median over pairs of calls."""
    rows = np.load(folder.parent / "rows.npy")
    parts = [rows[first * 256 : (first + 1) * 256] for first in range(5)]
    plain = saved_model(folder / backend / "1", 1, -1)
    filtered = saved_model(folder / f"filtered_{backend}" / "1", 1, -1)

    def seconds(call: Callable[[Rows], Any], part: Rows) -> float:
        started = time.perf_counter()
        call(part)
        return time.perf_counter() - started

    ratios = []
    for number in range(1000):
        part = parts[number % 5]
        if number % 2:
            before, after = seconds(plain, part), seconds(filtered, part)
        else:
            after, before = seconds(filtered, part), seconds(plain, part)
        ratios.append(after / before)
    return statistics.median(ratios) - 1


def measure_loading(folder: Path, contender: str) -> dict[str, float]:
    """Seconds to load, and resident memory in MiB that loading and answering 10,000 rows adds, in a fresh process."""
    rows = np.load(folder.parent / "rows.npy")[: max(BATCHES)]
    import xgboost

    if contender != "xgboost":
        import tensorflow as tf

        import mpru_tf.saved_model.session  # noqa: F401

        if contender == "tfdf":
            from mpru_tf.trees.tfdf_backend import import_tfdf

            import_tfdf()
        tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)).close()

    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024

    before = resident("VmRSS")
    started = time.perf_counter()
    call: Callable[[Rows], Any]
    if contender == "xgboost":
        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(folder / "model.json")
        call = booster.inplace_predict
    else:
        call = saved_model(folder / contender / "1", 1, -1)
    call(rows[:1])
    seconds = time.perf_counter() - started
    loaded = resident("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    call(rows)
    return {"load_seconds": seconds, "loaded_mib": loaded, "peak_mib_at_10000": resident("VmHWM") - before}


def in_process(*arguments: str) -> Any:
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.strip().splitlines()[-1])


def megabytes(*paths: Path) -> float:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def take_all(work: Path, rounds: int) -> dict[str, Any]:
    import tensorflow as tf
    import xgboost

    result: dict[str, Any] = {
        "model": f"Covertype, 7 x {TREES} trees, trained on {TRAINING_ROWS} rows",
        "tensorflow": tf.__version__,
        "xgboost": xgboost.__version__,
        "python": platform.python_version(),
        "rounds": rounds,
        "left_out": [
            name for name in ("tensorflow_decision_forests", "tl2cgen") if importlib.util.find_spec(name) is None
        ],
        "depths": {},
    }
    for depth in DEPTHS:
        folder = work / f"depth{depth}"
        of_depth: dict[str, Any] = json.loads((folder / "ops.json").read_text())
        for threads in THREADS:
            print(f"depth {depth}, {threads} threads", flush=True)
            asked = ("--measure", str(folder), "--threads", str(threads), "--rounds", str(rounds))
            of_depth[f"threads_{threads}"] = in_process(*asked)
        of_depth["filter_cost_at_256"] = {
            backend: in_process("--filter-cost", str(folder), "--contender", backend)
            for backend in ("ops", "tfdf")
            if (folder / backend).exists()
        }
        of_depth["loading"] = {
            name: in_process("--loading", str(folder), "--contender", name)
            for name in ("xgboost", "ops", "tfdf")
            if name == "xgboost" or (folder / name).exists()
        }
        of_depth["size_mib"] = {"xgboost": megabytes(folder / "model.json")} | {
            name: megabytes(folder / name) for name in ("ops", "tfdf") if (folder / name).exists()
        }
        of_depth["graph_mib"] = {
            name: megabytes(folder / name / "1" / "saved_model.pb")
            for name in ("ops", "tfdf")
            if (folder / name).exists()
        }
        result["depths"][str(depth)] = of_depth
    return result


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    for depth, of_depth in result["depths"].items():
        for threads in THREADS:
            table = Table(title=f"Depth {depth}, {threads} thread(s): speed as a ratio to XGBoost's (its rows/s first)")
            table.add_column("batch", justify="right")
            names = list(of_depth[f"threads_{threads}"]["1"])
            for name in names:
                table.add_column(name, justify="right")
            for batch, of_batch in of_depth[f"threads_{threads}"].items():
                cells = [
                    f"{of_batch[name]['rows_per_second']:,.0f}"
                    if name == "xgboost"
                    else f"{of_batch[name]['ratio_to_xgboost']:.2f}"
                    for name in names
                ]
                table.add_row(batch, *cells)
            console.print(table)
        costs = ", ".join(f"{cost:.1%} ({name})" for name, cost in of_depth["filter_cost_at_256"].items())
        console.print(
            f"Forgetting a class took {of_depth['seconds_to_forget'] * 1000:.0f} ms; "
            f"the filter adds {costs} to a request of 256 rows."
        )
        for name, loading in of_depth["loading"].items():
            console.print(
                f"{name}: {of_depth['size_mib'][name]:.1f} MiB on disk, loaded in {loading['load_seconds']:.2f} s, "
                f"{loading['loaded_mib']:.0f} MiB, with 10,000 rows {loading['peak_mib_at_10000']:.0f} MiB at most"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz with X [rows, 54] and y (0 to 6)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, default=Path("build/trees"), help="where models are kept")
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "trees.json")
    for hidden in ("--make", "--contender"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--depth", "--threads"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    for hidden in ("--measure", "--filter-cost", "--loading"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        steps: dict[str, Callable[[], None]] = {
            "train": lambda: train(args.work, args.depth, args.data),
            "ops": lambda: convert(args.work, "ops"),
            "tfdf": lambda: convert(args.work, "tfdf"),
            "generic": lambda: build_generic(args.work),
            "compile": lambda: compile_to_c(args.work),
        }
        steps[args.make]()
        (args.work / f"{args.make}.done").touch()
    elif args.measure:
        print(json.dumps(measure(args.measure, args.threads, args.rounds)))
    elif args.filter_cost:
        print(json.dumps(measure_filter(args.filter_cost, args.contender)))
    elif args.loading:
        print(json.dumps(measure_loading(args.loading, args.contender)))
    else:
        make_models(args.work, args.data)
        result = take_all(args.work, args.rounds)
        show(result)
        figures.save(result, args.out)


if __name__ == "__main__":
    main()
