"""What a version says about classes that were unlearned in its weights: ``assets.extra/mpru_unsir.json``.

It is no manifest, and the version no filtered one: the classes keep their scores, nothing holds an answer back, and
`verify` and `audit` go on taking it for what it is. A filter made on top has its manifest beside this file, which
every later version inherits along with the weights.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpru_tf.errors import ManifestError, explain

RECORD = "assets.extra/mpru_unsir.json"
FORMAT_VERSION = 1


def write_record(version_dir: Path, result: Mapping[str, Any], source: Mapping[str, Any] | None) -> None:
    """Write the record into a version directory.

    Args:
        version_dir: a complete SavedModel.
        result: :meth:`mpru_tf.UnsirResult.to_dict`.
        source: 'path' and 'sha256' of the file that the model was loaded from, None for one in memory.
    """
    from mpru_tf import __version__
    from mpru_tf.saved_model.bundle import index_digest

    values = {
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "method": "unsir",
        "source": source,
        # Holds a CRC32C of every tensor. A filter on top leaves the weights as they are, so it stays true there.
        "variables_index_sha256": index_digest(version_dir),
        **result,
    }
    path = version_dir / RECORD
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )


def unlearned_in(version_dir: Path) -> tuple[int, ...]:
    """The classes that were unlearned in the weights of a version directory, ascending; none without a record.

    Raises:
        ManifestError: as :func:`read_record`.
    """
    record = read_record(version_dir)
    return () if record is None else tuple(sorted(record["forgotten"]))


def read_record(version_dir: Path) -> dict[str, Any] | None:
    """The record of a version directory; None where no class was unlearned by us.

    Raises:
        ManifestError: there is one that cannot be understood, or the weights are others than it was written for.
    """
    from mpru_tf.saved_model.bundle import index_digest

    path = version_dir / RECORD
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format_version"] != FORMAT_VERSION:
            raise TypeError(f"format version {values['format_version']}")
        digest = values["variables_index_sha256"]
        _check_classes(values["forgotten"], values["classes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(
            explain(
                f"{path} cannot be read as a record of UNSIR.",
                received=f"{type(error).__name__}: {error}",
                valid=f"the file as mpru_tf wrote it, format version {FORMAT_VERSION}",
            )
        ) from error
    if digest != index_digest(version_dir):
        raise ManifestError(
            explain(
                f"{path} tells of other weights than those beside it: what was unlearned in these is not known.",
                hint="Copy the version directory again, or unlearn again.",
            )
        )
    return values


def _check_classes(forgotten: object, classes: object) -> None:
    if not isinstance(classes, int) or not isinstance(forgotten, list) or not forgotten:
        raise TypeError(f"forgotten {forgotten!r} of {classes!r} classes")
    if not all(type(index) is int and 0 <= index < classes for index in forgotten):
        raise TypeError(f"forgotten {forgotten!r} holds more than indices of {classes} classes")
