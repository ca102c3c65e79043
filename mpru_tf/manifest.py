"""The manifest: what was forgotten in a version, how, from which source, and how it was checked.

It lies at ``assets.extra/mpru_manifest.json`` in every filtered version directory; servers ignore it. It names the
filter's place in the graph, so that forgetting again replaces the filter instead of stacking a second one, and digests,
so that a version that was edited afterwards is noticed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpru_tf.errors import ManifestError, explain
from mpru_tf.saved_model.bundle import SAVED_MODEL_PB, index_digest
from mpru_tf.saved_model.splice import Splice

MANIFEST = "assets.extra/mpru_manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What one filtered version says about itself.

    Attributes:
        tool_version: version of mpru_tf that wrote it.
        created: UTC time, ISO 8601.
        source: 'path', 'version', 'saved_model_sha256' and 'variables_index_sha256' of the version it was made from.
        saved_model_sha256: hex digest of this version's saved_model.pb.
        variables_index_sha256: hex digest of variables.index (which holds a CRC32C of every tensor), None without one.
        classes: number n of classes.
        forgotten: indices of all forgotten classes, ascending, earlier ones included.
        labels: labels of the forgotten classes in the same order, or None when they are not known.
        method: the filter's method.
        temperature: of method 'tempered', else None.
        constants_sha256: digest of the filter's constants.
        preconditions: what was found about the class means, or None when the method needs none.
        splices: where the filter lies.
        dropped_outputs: SIG:KEY of outputs that were removed from their signatures.
        allowed_outputs: SIG:KEY of outputs computed before the class scores that the owner allowed.
        dropped_endpoints: attributes that Python loaders offer no more.
        leak_gate: 'passed' (a version with another result is never published).
        load_check: what loading the version in a Session showed.
        history: earlier forgets, oldest first, each with 'created', 'forgotten', 'method' and 'saved_model_sha256'.
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
    constants_sha256: str
    preconditions: dict[str, Any] | None
    splices: tuple[Splice, ...]
    dropped_outputs: tuple[str, ...]
    allowed_outputs: tuple[str, ...]
    dropped_endpoints: tuple[str, ...]
    leak_gate: str
    load_check: dict[str, Any]
    history: tuple[dict[str, Any], ...] = field(default=())

    def to_json(self) -> str:
        """The manifest as it is written to disk."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def write(self, version_dir: Path) -> None:
        """Write the manifest into a version directory."""
        path = version_dir / MANIFEST
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    def mismatches(self, version_dir: Path) -> list[str]:
        """What in a version directory is not as the manifest says, one phrase each."""
        found = []
        if hashlib.sha256((version_dir / SAVED_MODEL_PB).read_bytes()).hexdigest() != self.saved_model_sha256:
            found.append(f"{SAVED_MODEL_PB} was changed after it was published")
        if index_digest(version_dir) != self.variables_index_sha256:
            found.append("variables.index was changed after it was published")
        return found


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
        values["splices"] = tuple(Splice(**entry) for entry in values["splices"])
        lists = ("forgotten", "labels", "dropped_outputs", "allowed_outputs", "dropped_endpoints", "history")
        for name in lists:
            values[name] = tuple(values[name]) if values[name] is not None else None
        return Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            explain(
                f"{path} cannot be read as a manifest.",
                received=f"{type(error).__name__}: {error}",
                valid="the file as mpru_tf wrote it: " + ", ".join(entry.name for entry in fields(Manifest)),
                hint="Start again from the version that this one was made from.",
            )
        ) from error
