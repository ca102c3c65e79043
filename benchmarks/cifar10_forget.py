"""A CIFAR-10 ResNet trained by others forgets "cat": what becomes of the classes that stay, and of the cats?

    python benchmarks/cifar10_forget.py --model cifar10_resnet20.keras --data cifar10.npz [--out RESULTS.json]

The model is exported as it is, `mpru_tf.forget` writes version 2, and both versions answer CIFAR-10's test set in a C++
Session, as TensorFlow Serving would. The model must take (x/255 - mean)/std and answer logits or probabilities; the
data file needs x_test (uint8) and y_test.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import figures
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mpru_tf
from mpru_tf.resnet import export_version
from mpru_tf.saved_model.session import LoadedModel

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def probabilities(version: Path, images: Any, batch: int = 500) -> Any:
    """What a version answers to images uint8 [N, 32, 32, 3], as float64 probabilities [N, 10]."""
    answers = []
    with LoadedModel(version) as model:
        signature = model.signatures["serving_default"]
        (given,), (shown,) = signature.inputs, signature.outputs
        for start in track(
            range(0, len(images), batch), f"asking version {version.name}", console=Console(stderr=True)
        ):
            x = (images[start : start + batch].astype(np.float32) / 255 - MEAN) / STD
            answers.append(model.run("serving_default", {given: x})[shown])
    scores = np.concatenate(answers).astype(np.float64)
    if np.all(scores >= 0) and np.allclose(scores.sum(-1), 1, atol=1e-3):
        return scores
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def measure(model_file: Path, data_file: Path, label: str) -> dict[str, Any]:
    """Forget one class and compare the two versions on the test set."""
    import keras

    with np.load(data_file) as data:
        x, y = data["x_test"], data["y_test"].reshape(-1)
    forgotten = LABELS.index(label)
    retained = y != forgotten
    with tempfile.TemporaryDirectory() as folder:
        first = export_version(keras.models.load_model(model_file, compile=False), Path(folder) / "cifar10", LABELS)
        before = probabilities(first, x)
        rows: dict[str, Any] = {}
        for method in ("renormalize", "tempered"):
            result = mpru_tf.forget(first, [label], method=method)
            after = probabilities(result.path, x)
            rows[method] = {
                "retained_top1": float(np.mean(after[retained].argmax(-1) == y[retained])),
                "largest_forgotten_probability": float(after[:, forgotten].max()),
                "seconds": result.seconds,
                "forgotten_examples_now": {
                    LABELS[c]: float(np.mean(after[~retained].argmax(-1) == c)) for c in range(10) if c != forgotten
                },
            }
    return {
        "model": model_file.name,
        "forgotten": label,
        "unfiltered": {
            "test_top1": float(np.mean(before.argmax(-1) == y)),
            "retained_top1": float(np.mean(before[retained].argmax(-1) == y[retained])),
            "largest_forgotten_probability": float(before[:, forgotten].max()),
        },
        "filtered": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=f"{result['model']}: {result['forgotten']} forgotten, CIFAR-10 test set")
    for heading in ("version", "top-1 of retained classes", "largest forgotten probability", "re-export, s"):
        table.add_column(heading, justify="left" if heading == "version" else "right")
    plain = result["unfiltered"]
    table.add_row("unfiltered", f"{plain['retained_top1']:.4f}", f"{plain['largest_forgotten_probability']:.4f}", "")
    for method, row in result["filtered"].items():
        table.add_row(
            method, f"{row['retained_top1']:.4f}", f"{row['largest_forgotten_probability']}", f"{row['seconds']:.3f}"
        )
    console = Console()
    console.print(table)
    now = sorted(next(iter(result["filtered"].values()))["forgotten_examples_now"].items(), key=lambda item: -item[1])
    console.print(f"Its examples are now called: {', '.join(f'{name} {share:.0%}' for name, share in now[:4])}.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a .keras file")
    parser.add_argument("--data", type=Path, required=True, help="an .npz file with x_test and y_test")
    parser.add_argument("--forget", default="cat", choices=LABELS)
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "cifar10_forget.json")
    args = parser.parse_args()
    result = measure(args.model, args.data, args.forget)
    show(result)
    figures.save(result, args.out)


if __name__ == "__main__":
    main()
