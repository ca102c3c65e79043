"""The quick start: train, serve, forget while a client asks, and show what the client saw.

Everything is what a team would run: a real model, the model server as a process of its own, a client that knows nothing
of mpru_tf, and one call of :func:`mpru_tf.forget` in between. Every number shown is computed from the client's log.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import mpru_tf
from mpru_tf.console import messages
from mpru_tf.errors import MissingExtraError, PublishError, ServingError, explain
from mpru_tf.labels import parse_classes

if TYPE_CHECKING:
    from mpru_tf.reexport import ForgetResult

LABELS = tuple(str(digit) for digit in range(10))
MODEL_NAME = "digits"
ENOUGH_ACCURACY = 0.97

_MARKER = "made_by_quickstart.txt"  # the sign by which a later run knows that it may replace a folder
_PATIENCE = 120.0  # seconds within which a server or a client on a busy machine has started
_IMAGES_PER_REQUEST = 15

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: images float32 [N, 8, 8, 1] with values 0 to 16, classes int64 [N]."""

    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What the client logged.

    Attributes:
        sent: seconds from the client's first request to each request [requests].
        seconds: how long each took [requests].
        versions: the version that answered each, 0 where it failed [requests].
        rows: for each image answered, its row in the test images [answers].
        requests: for each image answered, the position of its request [answers].
        scores: the probabilities [answers, n].
        errors: what failed requests said.
    """

    sent: Floats
    seconds: Floats
    versions: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    requests: npt.NDArray[np.int64]
    scores: Floats
    errors: tuple[str, ...]

    def of_version(self, version: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return rows and scores of the images that one version answered."""
        chosen = self.versions[self.requests] == version
        return self.rows[chosen], self.scores[chosen]


@dataclass(frozen=True)
class Results:
    """What the quick start found. Accuracies are fractions, times seconds.

    Attributes:
        forgotten: index of the forgotten class.
        label: its label.
        test_accuracy: of version 1 on all test images, as the client saw it.
        retained_accuracy_before: of version 1 on the test images of retained classes.
        retained_accuracy_after: of version 2 on the same.
        forgotten_accuracy_before: of version 1 on the test images of the forgotten class.
        forgotten_accuracy_after: of version 2 on the same.
        class_accuracy_before: per class.
        class_accuracy_after: per class.
        largest_forgotten_probability_before: over all answers of version 1.
        largest_forgotten_probability_after: over all answers of version 2.
        destinations: label to number of test images of the forgotten class that version 2 takes for it.
        method: the filter's method.
        seconds_reexport: time of the re-export itself.
        seconds_load_check: time of the check before publishing.
        requests: sent in all.
        failed: of them.
        first_request_of_version_2: number of the first request that version 2 answered, counted from 1.
        longest_request: seconds.
        problems: sentences; empty if all went as it must.
        picture: path of the PNG.
        model: base path of the model.
    """

    forgotten: int
    label: str
    test_accuracy: float
    retained_accuracy_before: float
    retained_accuracy_after: float
    forgotten_accuracy_before: float
    forgotten_accuracy_after: float
    class_accuracy_before: list[float]
    class_accuracy_after: list[float]
    largest_forgotten_probability_before: float
    largest_forgotten_probability_after: float
    destinations: dict[str, int]
    method: str
    seconds_reexport: float
    seconds_load_check: float
    requests: int
    failed: int
    first_request_of_version_2: int
    longest_request: float
    problems: list[str]
    picture: str
    model: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def run(
    out: str | Path, *, forget: str = "3", epochs: int = 16, seed: int = 0, enough_accuracy: float = ENOUGH_ACCURACY
) -> Results:
    """Run the quick start and leave ``quickstart.png``, ``quickstart.json``, logs and the model in a folder.

    Args:
        out: the folder; made if missing. A model that an earlier quick start left there is replaced.
        forget: the digit to forget.
        epochs: passes over the 1,347 training images.
        seed: of weights, order and augmentation.
        enough_accuracy: the test accuracy below which the results name a problem.

    Raises:
        MissingExtraError: matplotlib or scikit-learn is not installed.
        ForgetListError: there is no such digit.
        ServingError: server or client did not come up, or version 2 was never served.
        MPRUError: whatever :func:`mpru_tf.forget` raises.
    """
    (forgotten,) = parse_classes([forget], LABELS, len(LABELS))
    _require_report_extra()
    out = Path(out)
    base = _fresh_base(out / "model")
    say = _narrator(messages())

    say("training a ResNet-8 on scikit-learn's digits")
    digits = load_digits()
    _train_and_export(digits, base, epochs, seed)
    say("serving version 1 with mpru-tf serve, in a process of its own")
    with _server(base, out / "server.log") as target, _client(digits, target, out) as log:
        # Each image is asked about twice before and twice after, so that the picture shows the same images.
        rounds = 2 * -(-len(digits.x_test) // _IMAGES_PER_REQUEST)
        say("a plain gRPC client asks for its answers")
        _wait(lambda: _answered(log) >= rounds, "the client got no answers", out)
        say(f"forgetting {LABELS[forgotten]} into version 2 while the client goes on")
        result = mpru_tf.forget(base, [forgotten])
        _wait(lambda: _answered(log, version=result.version) >= rounds, "version 2 was never served", out)
    say("drawing what the client saw")
    answers = read_answers(log)
    picture = out / "quickstart.png"
    results = summarise(digits.y_test, answers, result, enough_accuracy, picture, base)
    draw(digits, answers, results, result.version, picture)
    (out / "quickstart.json").write_text(json.dumps(results.to_dict(), indent=2) + "\n", encoding="utf-8")
    return results


def _narrator(console: Console) -> Callable[[str], None]:
    """Return a function that says what happens next, with the seconds since the start."""
    started = time.monotonic()

    def say(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {what}", highlight=False)

    return say


def _require_report_extra() -> None:
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            explain(f"The quick start needs {error.name}.", hint="Install it: pip install 'mpru_tf[report]'.")
        ) from error


def _fresh_base(base: Path) -> Path:
    """Return an empty base path, in place of what an earlier quick start left there."""
    marker = base / _MARKER
    try:
        if marker.is_file():
            shutil.rmtree(base)
        if base.exists():
            raise PublishError(
                explain(
                    "The folder for the model is there already, and no quick start made it.",
                    received=base,
                    hint="Name another folder with --out.",
                )
            )
        base.mkdir(parents=True)
        marker.write_text("The quick start of mpru_tf made this folder, and replaces it when run again.\n")
    except OSError as error:
        raise PublishError(
            explain("The output folder cannot be written.", received=f"{base} ({error.strerror})")
        ) from error
    return base


# ------------------------------------------------------------------------------------------------------------ model
def load_digits() -> Digits:
    """Load the 1,797 digits that ship with scikit-learn, a quarter of each class for testing."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        digits.images[..., np.newaxis].astype(np.float32),
        digits.target.astype(np.int64),
        test_size=0.25,
        stratify=digits.target,
        random_state=0,
    )
    # Take turns among the digits, so that each request of the client asks about all of them.
    ranks = np.array([np.count_nonzero(y_test[:row] == digit) for row, digit in enumerate(y_test)])
    turns = np.lexsort((y_test, ranks))
    return Digits(x_train, y_train, x_test[turns], y_test[turns])


def _train_and_export(digits: Digits, base: Path, epochs: int, seed: int) -> Path:
    import keras

    from mpru_tf.resnet import build_resnet, export_version, train

    keras.utils.set_random_seed(seed)
    model = build_resnet(8, (8, 8, 1), len(LABELS), scale=1 / 16)
    train(
        model,
        digits.x_train,
        digits.y_train,
        epochs=epochs,
        batch_size=64,
        shift=1,
        validation=(digits.x_test, digits.y_test),
        seed=seed,
        progress=True,
    )
    return export_version(model, base, LABELS)


# ------------------------------------------------------------------------------------------- the processes around it
@contextmanager
def _server(base: Path, log: Path) -> Iterator[str]:
    """Run ``mpru-tf serve`` and yield HOST:PORT of its gRPC interface."""
    command = [sys.executable, "-m", "mpru_tf.cli", "serve", "--port=0"]
    command += [f"--model_name={MODEL_NAME}", f"--model_base_path={base}", "--file_system_poll_wait_seconds=0.25"]
    with open(log, "w", encoding="utf-8") as file, _running(command, stdout=file, stderr=file) as server:

        def target() -> str:
            # What the server logs comes before: the line that it prints once it answers is the one with the address.
            told = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("serving ")]
            words = told[0].partition("gRPC ")[2].split() if told else []
            return words[0] if words else ""

        _wait(lambda: bool(target()), "the server did not start", log.parent, server)
        yield target()


@contextmanager
def _client(digits: Digits, target: str, out: Path) -> Iterator[Path]:
    """Run the client and yield the file it logs to; it has ended when this is left."""
    images, log = out / "images.npy", out / "requests.jsonl"
    np.save(images, digits.x_test)
    log.unlink(missing_ok=True)
    program = Path(__file__).with_name("quickstart_client.py")
    command = [sys.executable, str(program), f"--target={target}", f"--model={MODEL_NAME}"]
    command += [f"--images={images}", f"--log={log}", f"--batch={_IMAGES_PER_REQUEST}"]
    with open(out / "client.log", "w", encoding="utf-8") as file, _running(command, stdout=file, stderr=file) as client:
        _wait(lambda: log.exists() and log.stat().st_size > 0, "the client did not start", out, client)
        yield log


@contextmanager
def _running(command: Sequence[str], **files: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child process; whatever happens, it has ended when this is left."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **files)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(
    ready: Callable[[], bool], otherwise: str, logs: Path, process: subprocess.Popen[bytes] | None = None
) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            how = "its process ended" if ended else f"within {_PATIENCE:.0f} s"
            raise ServingError(explain(f"Quick start: {otherwise}.", received=how, hint=f"See the logs in {logs}."))
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ what the client saw
def _entries(log: Path) -> list[dict[str, Any]]:
    """Return the lines of the client's log that are complete."""
    text = log.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _answered(log: Path, version: int | None = None) -> int:
    return sum("version" in entry and version in (None, entry["version"]) for entry in _entries(log))


def read_answers(log: Path) -> Answers:
    """Read the client's log."""
    entries = _entries(log)
    answered = [(position, entry) for position, entry in enumerate(entries) if "version" in entry]
    return Answers(
        sent=np.array([entry["sent"] for entry in entries]),
        seconds=np.array([entry["seconds"] for entry in entries]),
        versions=np.array([entry.get("version", 0) for entry in entries], dtype=np.int64),
        rows=np.array([row for _, entry in answered for row in entry["rows"]], dtype=np.int64),
        requests=np.array([position for position, entry in answered for _ in entry["rows"]], dtype=np.int64),
        scores=np.array([scores for _, entry in answered for scores in entry["scores"]]),
        errors=tuple(entry["error"] for entry in entries if "error" in entry),
    )


def summarise(
    classes: npt.NDArray[np.int64],
    answers: Answers,
    result: ForgetResult,
    enough_accuracy: float,
    picture: Path,
    base: Path,
) -> Results:
    """Compute what the quick start shows from the client's log; ``classes`` are those of the test images [N]."""
    (forgotten,) = result.forgotten
    before, after = (_predictions(answers, version, len(classes)) for version in (1, result.version))
    probability_before, probability_after = (
        float(answers.of_version(version)[1][:, forgotten].max()) for version in (1, result.version)
    )
    retained = classes != forgotten
    right_before, right_after = before == classes, after == classes
    counts = np.bincount(after[~retained], minlength=len(LABELS))
    order = np.argsort(-counts, kind="stable")
    accuracy = float(right_before.mean())
    problems = []
    if accuracy < enough_accuracy:
        problems.append(f"The model learnt too little: test accuracy {accuracy:.4f}, below {enough_accuracy}.")
    if answers.errors:
        count = f"{len(answers.errors)} of {len(answers.sent)} requests"
        problems.append(f"{count} failed, the first with {answers.errors[0]}.")
    if probability_after != 0.0:
        problems.append(f"Version {result.version} answered the forgotten class with probability {probability_after}.")
    return Results(
        forgotten=forgotten,
        label=LABELS[forgotten],
        test_accuracy=accuracy,
        retained_accuracy_before=float(right_before[retained].mean()),
        retained_accuracy_after=float(right_after[retained].mean()),
        forgotten_accuracy_before=float(right_before[~retained].mean()),
        forgotten_accuracy_after=float(right_after[~retained].mean()),
        class_accuracy_before=[float(right_before[classes == c].mean()) for c in range(len(LABELS))],
        class_accuracy_after=[float(right_after[classes == c].mean()) for c in range(len(LABELS))],
        largest_forgotten_probability_before=probability_before,
        largest_forgotten_probability_after=probability_after,
        destinations={LABELS[c]: int(counts[c]) for c in order if counts[c]},
        method=result.method,
        seconds_reexport=result.seconds,
        seconds_load_check=result.seconds_load_check,
        requests=len(answers.sent),
        failed=len(answers.errors),
        first_request_of_version_2=int(np.argmax(answers.versions == result.version)) + 1,
        longest_request=float(answers.seconds.max()),
        problems=problems,
        picture=str(picture),
        model=str(base),
    )


def _predictions(answers: Answers, version: int, images: int) -> npt.NDArray[np.int64]:
    """Return the class that a version's last answer puts first, for each test image; -1 for images it was not asked."""
    predictions = np.full(images, -1, dtype=np.int64)
    rows, scores = answers.of_version(version)
    predictions[rows] = scores.argmax(axis=1)
    return predictions


# --------------------------------------------------------------------------------------------------------- showing
def show(results: Results, console: Console) -> None:
    """Print the results as a table."""
    table = Table(title=f"A served ResNet forgets the digit {results.label}", title_style="bold", caption_style="dim")
    table.add_column("what the client saw", style="bold")
    table.add_column("version 1", justify="right")
    table.add_column("version 2", justify="right")
    table.add_row(
        "accuracy on retained classes",
        f"{results.retained_accuracy_before:.4f}",
        f"[green]{results.retained_accuracy_after:.4f}[/green]",
    )
    table.add_row(
        f"accuracy on the forgotten class ({results.label})",
        f"{results.forgotten_accuracy_before:.4f}",
        f"[green]{results.forgotten_accuracy_after:.4f}[/green]",
    )
    right = "green" if results.largest_forgotten_probability_after == 0.0 else "bold red"
    table.add_row(
        f"largest probability of a {results.label}",
        f"{results.largest_forgotten_probability_before:.4f}",
        f"[{right}]{results.largest_forgotten_probability_after}[/{right}]",
    )
    console.print(table)
    images = sum(results.destinations.values())
    went = ", ".join(f"{label} ({count})" for label, count in results.destinations.items())
    right = "green" if results.failed == 0 else "bold red"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row(f"its {images} test images are now taken for", went)
    facts.add_row("requests sent", str(results.requests))
    facts.add_row("requests failed", f"[{right}]{results.failed}[/{right}]")
    facts.add_row("first answered by version 2", f"request {results.first_request_of_version_2}")
    facts.add_row("longest request", f"{results.longest_request:.3f} s")
    facts.add_row("re-export", f"{results.seconds_reexport:.3f} s, method {results.method}")
    facts.add_row("load check", f"{results.seconds_load_check:.3f} s")
    facts.add_row("test accuracy before", f"{results.test_accuracy:.4f}")
    facts.add_row("picture", results.picture)
    facts.add_row("model", results.model)
    console.print(facts, highlight=False, soft_wrap=True)


_BEFORE, _AFTER, _FORGOTTEN, _INK, _FAINT = "#8796a6", "#1f6f8b", "#c8553d", "#2b2f36", "#dfe3e8"


def draw(digits: Digits, answers: Answers, results: Results, version: int, picture: Path) -> None:
    """Draw accuracies, destinations, examples and the timeline of requests into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 11,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "axes.titlelocation": "left",
        "axes.titlesize": 12.5,
        "axes.titleweight": "bold",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(13, 10.2), dpi=130, facecolor="white")
        FigureCanvasAgg(figure)
        margins = {"left": 0.065, "right": 0.975, "top": 0.85, "bottom": 0.07}
        ratios = {"height_ratios": (1.1, 0.6, 1), "width_ratios": (1.55, 1)}
        grid = figure.add_gridspec(3, 2, hspace=0.52, wspace=0.16, **margins, **ratios)
        figure.text(0.065, 0.945, f"A served ResNet forgets the digit {results.label}", size=20, weight="bold")
        largest = results.largest_forgotten_probability_after
        subtitle = (
            f"{results.requests} gRPC requests, {results.failed} failed.  Largest probability of a {results.label} in "
            f"any answer of version {version}: {largest}.  Re-export: {results.seconds_reexport:.3f} s."
        )
        figure.text(0.065, 0.914, subtitle, size=12)
        _draw_accuracies(figure.add_subplot(grid[0, 0]), results, version)
        _draw_destinations(figure.add_subplot(grid[0, 1]), results, version)
        _draw_examples(figure, grid[1, :], digits, answers, results, version)
        _draw_timeline(figure.add_subplot(grid[2, :]), answers, results, version)
        figure.savefig(picture)


def _draw_accuracies(axes: Any, results: Results, version: int) -> None:
    positions = np.arange(len(LABELS))
    bars = ((-0.2, results.class_accuracy_before, _BEFORE, 1), (0.2, results.class_accuracy_after, _AFTER, version))
    for shift, values, colour, number in bars:
        axes.bar(positions + shift, values, width=0.38, color=colour, label=f"version {number}")
    axes.set_title("Accuracy per digit, as the client saw it")
    axes.set_xticks(positions, LABELS)
    axes.set_xlabel("true digit")
    axes.set_ylim(0, 1.13)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="y", color=_FAINT)
    axes.spines["left"].set_visible(False)
    tick = axes.get_xticklabels()[results.forgotten]
    tick.set_color(_FORGOTTEN)
    tick.set_fontweight("bold")
    axes.annotate(
        "forgotten",
        (results.forgotten + 0.2, results.class_accuracy_after[results.forgotten] + 0.02),
        ha="center",
        va="bottom",
        rotation=90,
        color=_FORGOTTEN,
        weight="bold",
    )
    axes.legend(loc="upper right", ncols=2, borderaxespad=0, bbox_to_anchor=(1, 1.13))


def _draw_destinations(axes: Any, results: Results, version: int) -> None:
    names, counts = list(results.destinations), list(results.destinations.values())
    positions = np.arange(len(names))
    axes.barh(positions, counts, height=0.62, color=_AFTER)
    for position, count in zip(positions, counts, strict=True):
        axes.text(count + max(counts) * 0.02, position, str(count), va="center")
    axes.set_title(f"Where the {sum(counts)} images of a {results.label} go in version {version}")
    axes.set_yticks(positions, names)
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
    axes.set_xlim(0, max(counts) * 1.1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_ylabel("answered digit")


def _draw_examples(figure: Any, cell: Any, digits: Digits, answers: Answers, results: Results, version: int) -> None:
    """Show images of the forgotten class, and what each version says about them."""
    shown = np.flatnonzero(digits.y_test == results.forgotten)[:9]
    last = {number: dict(zip(*answers.of_version(number), strict=True)) for number in (1, version)}
    strip = cell.subgridspec(1, len(shown), wspace=0.25)
    for position, row in enumerate(shown):
        axes = figure.add_subplot(strip[position])
        axes.imshow(digits.x_test[row, :, :, 0], cmap="gray_r")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
        for number, colour, height in ((1, _BEFORE, -0.16), (version, _AFTER, -0.36)):
            scores = last[number][row]
            best = int(np.argmax(scores))
            text = f"v{number}:  {LABELS[best]}  ({scores[best]:.2f})"
            axes.text(0.5, height, text, transform=axes.transAxes, ha="center", color=colour, weight="bold")
        if position == 0:
            axes.set_title(f"Images of a {results.label}: what each version says they are, and how sure it is")


def _draw_timeline(axes: Any, answers: Answers, results: Results, version: int) -> None:
    largest = np.zeros(len(answers.sent))
    np.maximum.at(largest, answers.requests, answers.scores[:, results.forgotten])
    for number, colour in ((1, _BEFORE), (version, _AFTER)):
        chosen = answers.versions == number
        label = f"version {number} answers"
        axes.scatter(answers.sent[chosen], largest[chosen], s=16, color=colour, linewidths=0, label=label)
    failed = answers.versions == 0
    if failed.any():
        axes.scatter(answers.sent[failed], np.zeros(failed.sum()), s=40, marker="x", color=_FORGOTTEN, label="failed")
    swap = float(answers.sent[results.first_request_of_version_2 - 1])
    axes.axvline(swap, color=_FORGOTTEN, linewidth=1.5)
    is_late = swap > (answers.sent[0] + answers.sent[-1]) / 2  # then there is room for words on the left only
    axes.annotate(
        f"request {results.first_request_of_version_2}: version {version} answers",
        (swap, 0.5),
        xytext=(-8 if is_late else 8, 0),
        textcoords="offset points",
        color=_FORGOTTEN,
        ha="right" if is_late else "left",
        weight="bold",
        va="center",
    )
    axes.set_title(f"Largest probability of a {results.label} in each request of {_IMAGES_PER_REQUEST} images")
    axes.set_xlabel("seconds since the first request")
    axes.set_ylim(-0.04, 1.06)
    axes.set_xlim(0, float(answers.sent[-1]) * 1.005)
    axes.grid(axis="y", color=_FAINT)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right", ncols=3, bbox_to_anchor=(1, 1.02), borderaxespad=0, handletextpad=0.2, markerscale=2)
