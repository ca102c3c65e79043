"""How long does it take to make a served ResNet-50 forget a class, against `cp -r` and against load-wrap-save?

    python benchmarks/reexport.py [--runs 7] [--out benchmarks/results/reexport.json]

`keras.applications.ResNet50(weights=None)` is exported once. Then, in one process with TensorFlow imported, three ways
to get a second version directory take turns: `cp -r` (no forgetting, the floor), `mpru_tf.forget` (without the load
check, which is timed apart) and load-wrap-save (`tf.saved_model.load`, the filter around each signature,
`tf.saved_model.save`). Added peak memory is taken in a fresh process each, from the kernel's high-water mark.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

FORGOTTEN = [3]


def export_resnet50(base: Path) -> None:
    """Export an untrained ResNet-50 as version 1."""
    import keras

    keras.applications.ResNet50(weights=None).export(str(base / "1"), verbose=False)


def copy_it(base: Path) -> None:
    """`cp -r`, as a shell would."""
    subprocess.run(["cp", "-r", str(base / "1"), str(base / "2")], check=True)


def forget_it(base: Path) -> None:
    """The re-export itself, without the load check."""
    import mpru_tf

    mpru_tf.forget(base / "1", FORGOTTEN, load_check=False)


def load_wrap_save(base: Path) -> None:
    """The obvious way: load in Python, put the filter around each signature, save again."""
    import tensorflow as tf

    from mpru_tf import make_filter
    from mpru_tf.layer import filter_tensor

    loaded = tf.saved_model.load(str(base / "1"))
    spec = make_filter(1000, FORGOTTEN)
    wrapper = tf.Module()
    wrapper.loaded = loaded

    def around(signature: Any) -> Any:
        (name, x), *_ = signature.structured_input_signature[1].items()

        @tf.function(input_signature=[tf.TensorSpec(x.shape, x.dtype, name=name)])
        def filtered(x: Any) -> dict[str, Any]:
            return {key: filter_tensor(value, spec, False) for key, value in signature(**{name: x}).items()}

        return filtered

    wrapper.filtered = {key: around(signature) for key, signature in loaded.signatures.items()}
    tf.saved_model.save(wrapper, str(base / "2"), signatures=dict(wrapper.filtered))


WAYS: dict[str, Callable[[Path], None]] = {
    "cp -r": copy_it,
    "mpru_tf.forget": forget_it,
    "load-wrap-save": load_wrap_save,
}


def seconds_of(way: Callable[[Path], None], base: Path) -> float:
    """Time one run into a version 2 that does not exist yet, and remove it again."""
    started = time.perf_counter()
    way(base)
    taken = time.perf_counter() - started
    shutil.rmtree(base / "2")
    return taken


def added_peak_mib(way: str, base: Path) -> float:
    """Peak resident memory that one run adds in a fresh process, in MiB (Linux)."""
    output = subprocess.run(
        [sys.executable, __file__, "--peak-of", way, "--base", str(base)], check=True, capture_output=True, text=True
    )
    shutil.rmtree(base / "2")
    return float(output.stdout.strip().splitlines()[-1])


def measure_peak(way: str, base: Path) -> None:
    """Run one way and print how far it raised the high-water mark of resident memory."""
    import keras  # noqa: F401  what a process that exports models has loaded anyway
    import tensorflow as tf  # noqa: F401

    import mpru_tf.layer
    import mpru_tf.reexport  # noqa: F401

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = status("VmRSS")
    WAYS[way](base)
    print(status("VmHWM") - before)


def measure(runs: int) -> dict[str, Any]:
    """Take all figures."""
    import tensorflow as tf

    import mpru_tf

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "resnet50"
        export_resnet50(base)
        size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
        for way in WAYS.values():
            seconds_of(way, base)  # warm caches and lazy imports
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(runs):
            for name, way in WAYS.items():
                seconds[name].append(seconds_of(way, base))
        checked = [
            mpru_tf.forget(base / "1", FORGOTTEN, into=Path(folder) / f"checked{run}").seconds_load_check
            for run in range(3)
        ]
        peaks = {name: added_peak_mib(name, base) for name in WAYS if name != "cp -r"}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    own = medians["mpru_tf.forget"]
    return {
        "model": "keras.applications.ResNet50(weights=None)",
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "runs": runs,
        "model_bytes": size,
        "seconds": seconds,
        "median_seconds": medians,
        "ratio_to_cp": own / medians["cp -r"],
        "times_faster_than_load_wrap_save": medians["load-wrap-save"] / own,
        "added_peak_mib": peaks,
        "median_seconds_load_check": statistics.median(checked),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Second version of a ResNet-50 ({result['model_bytes'] / 2**20:.0f} MiB), {result['runs']} runs"
    )
    for heading in ("way", "median s", "min s", "max s", "ratio to cp -r", "added peak MiB"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, values in result["seconds"].items():
        peak = result["added_peak_mib"].get(name)
        table.add_row(
            name,
            f"{statistics.median(values):.3f}",
            f"{min(values):.3f}",
            f"{max(values):.3f}",
            f"{statistics.median(values) / result['median_seconds']['cp -r']:.2f}",
            f"{peak:.0f}" if peak is not None else "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"mpru_tf.forget takes {result['ratio_to_cp']:.2f} of cp -r and is "
        f"{result['times_faster_than_load_wrap_save']:.0f} times faster than load-wrap-save; "
        f"the optional load check takes {result['median_seconds_load_check']:.2f} s more."
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "reexport.json")
    parser.add_argument("--peak-of", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        measure_peak(args.peak_of, args.base)
        return
    result = measure(args.runs)
    show(result)
    figures.save(result, args.out)


if __name__ == "__main__":
    main()
