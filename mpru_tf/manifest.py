"""The manifest: what was forgotten in a version, how, from which source, and how it was checked.

It lies at ``assets.extra/mpru_manifest.json`` in every filtered version directory; servers ignore it. It names the
filter's place in the graph, so that forgetting again replaces the filter instead of stacking a second one, and digests,
so that a version that was edited afterwards is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpru_tf.errors import ManifestError, explain
from mpru_tf.saved_model.bundle import SAVED_MODEL_FORMS, SAVED_MODEL_PB, index_digest
from mpru_tf.saved_model.score_site import Choice
from mpru_tf.saved_model.splice import Splice

MANIFEST = "assets.extra/mpru_manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What one filtered version says about itself.

    Attributes:
        tool_version: version of mpru_tf that wrote it.
        created: UTC time, ISO 8601.
        source: 'path', 'version', 'saved_model_sha256' and 'variables_index_sha256' of the version it was made from,
            and 'same_base_path', whether it lay beside this one.
        saved_model_sha256: hex digest of this version's saved_model.pb.
        variables_index_sha256: hex digest of variables.index (which holds a CRC32C of every tensor), None without one.
        classes: number n of classes.
        forgotten: indices of all forgotten classes, ascending, earlier ones included.
        labels: labels of the forgotten classes in the same order, or None when they are not known.
        warmup: what became of the warm-up file: 'mode' ('keep', 'none', 'auto' or 'file'), the 'file' and its 'sha256',
            'batch_sizes', how many 'records' there are, how many were 'left_out', whether they were 'replayed', and
            signatures 'not_asked'; None in versions of an older mpru_tf.
        redacted: whether labels of forgotten classes were removed from all files; :attr:`labels` holds placeholders.
        method: the filter's method.
        temperature: of method 'tempered', else None.
        choice: what its owner said about the class scores, where the graph leaves it open.
        constants_sha256: digest of the filter's constants.
        preconditions: what was found about the class means, or None when the method needs none.
        splices: where the filter lies.
        dropped_outputs: SIG:KEY of outputs that were removed from their signatures.
        allowed_outputs: SIG:KEY of outputs computed before the class scores that the owner allowed.
        dropped_endpoints: attributes that Python loaders offer no more.
        leak_gate: 'passed' (a version with another result is never published).
        load_check: what loading the version in a Session showed.
        history: earlier forgets, oldest first, each as :meth:`step` of its manifest.
    """

    tool_version: str
    created: str
    source: dict[str, Any]
    saved_model_sha256: str
    variables_index_sha256: str | None
    classes: int
    forgotten: tuple[int, ...]
    labels: tuple[str, ...] | None
    method: str
    temperature: float | None
    choice: Choice
    constants_sha256: str
    preconditions: dict[str, Any] | None
    splices: tuple[Splice, ...]
    dropped_outputs: tuple[str, ...]
    allowed_outputs: tuple[str, ...]
    dropped_endpoints: tuple[str, ...]
    leak_gate: str
    load_check: dict[str, Any]
    history: tuple[dict[str, Any], ...] = field(default=())
    redacted: bool = False
    warmup: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The manifest as it is written to disk."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def write(self, version_dir: Path) -> None:
        """Write the manifest into a version directory."""
        path = version_dir / MANIFEST
        path.parent.mkdir(exist_ok=True)
        # A path of bytes that are no text holds lone surrogates; escaped, they are JSON as well.
        path.write_text(self.to_json(), encoding="utf-8", errors="backslashreplace")

    def step(self) -> dict[str, Any]:
        """What the manifests of later versions say about this one, so that it can be told when it is gone."""
        values = asdict(self)
        return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in _STEP}

    def mismatches(self, version_dir: Path) -> list[str]:
        """What in a version directory is not as the manifest says, one phrase each."""
        changed = changed_files(version_dir, self.saved_model_sha256, self.variables_index_sha256)
        return [f"{name} was changed after it was published" for name in changed]


_STEP = (
    *("created", "source", "saved_model_sha256", "variables_index_sha256"),
    *("forgotten", "labels", "method", "temperature"),
)


def changed_files(version_dir: Path, saved_model_sha256: str, variables_index_sha256: str | None) -> list[str]:
    """Names of the files in a version directory that do not have the digests that were recorded."""
    changed = []
    if model_digest(version_dir) != saved_model_sha256:
        changed.append(next((form.name for form in _model_files(version_dir)), SAVED_MODEL_PB))
    if index_digest(version_dir) != variables_index_sha256:
        changed.append("variables.index")
    return changed


def model_digest(version_dir: Path) -> str | None:
    """SHA-256 of saved_model.pb, or of the form in which the SavedModel is stored instead; None if it is gone."""
    return next((hashlib.sha256(form.read_bytes()).hexdigest() for form in _model_files(version_dir)), None)


def _model_files(version_dir: Path) -> list[Path]:
    return [version_dir / name for name in SAVED_MODEL_FORMS if (version_dir / name).is_file()]


def read_manifest(version_dir: Path) -> Manifest | None:
    """The manifest of a version directory; None for a version that we did not make.

    Raises:
        ManifestError: there is one, but it cannot be understood.
    """
    path = version_dir / MANIFEST
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format_version")
        if found != FORMAT_VERSION:
            raise ManifestError(
                explain(
                    f"{path} is of a format that this version of mpru_tf does not know.",
                    received=found,
                    valid=FORMAT_VERSION,
                    hint="Upgrade mpru_tf.",
                )
            )
        values["choice"] = Choice.from_dict(values["choice"])
        values["splices"] = tuple(Splice(**entry) for entry in values["splices"])
        lists = ("forgotten", "labels", "dropped_outputs", "allowed_outputs", "dropped_endpoints", "history")
        for name in lists:
            values[name] = tuple(values[name]) if values[name] is not None else None
        manifest = Manifest(**values)
        for step in (*manifest.history, manifest.step()):
            _check_step(step, manifest.classes)
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(
            explain(
                f"{path} cannot be read as a manifest.",
                received=f"{type(error).__name__}: {error}",
                valid="the file as mpru_tf wrote it: " + ", ".join(entry.name for entry in fields(Manifest)),
                hint="Start again from the version that this one was made from.",
            )
        ) from error


def _check_step(step: Mapping[str, Any], classes: int) -> None:
    """Check what one step of the history is told by. What an older mpru_tf did not write may be absent.

    Raises:
        TypeError, KeyError: it is not as we write it.
    """
    text, number, nothing = str, int, type(None)
    _expect("created", step["created"], text)
    _expect("method", step["method"], text)
    _expect("saved_model_sha256", step["saved_model_sha256"], text)
    _expect("variables_index_sha256", step.get("variables_index_sha256"), text, nothing)
    _expect("temperature", step.get("temperature"), float, number, nothing)
    forgotten, labels = step["forgotten"], step.get("labels")
    _expect("forgotten", forgotten, list)
    if not all(isinstance(index, int) and 0 <= index < classes for index in forgotten):
        raise TypeError(f"forgotten holds more than indices of {classes} classes")
    _expect("labels", labels, list, nothing)
    if labels is not None and not (len(labels) == len(forgotten) and all(isinstance(label, str) for label in labels)):
        raise TypeError("labels holds other than one text per forgotten class")
    if "source" in step:
        source = step["source"]
        _expect("source", source, dict)
        _expect("source.path", source["path"], text)
        _expect("source.version", source["version"], number, nothing)
        _expect("source.saved_model_sha256", source["saved_model_sha256"], text)
        _expect("source.variables_index_sha256", source["variables_index_sha256"], text, nothing)
        _expect("source.same_base_path", source.get("same_base_path", True), bool)


def _expect(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is {type(value).__name__}")
