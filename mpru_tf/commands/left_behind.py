"""What is told after classes were forgotten in the answers: weights, and other versions, that still know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpru_tf.console import output

if TYPE_CHECKING:
    from mpru_tf.reexport import ForgetResult


def unfiltered_versions(result: ForgetResult) -> list[int]:
    """Return the other versions in the base path that still answer a class forgotten here."""
    from mpru_tf.errors import ManifestError
    from mpru_tf.manifest import read_manifest
    from mpru_tf.versions import list_versions

    base, found = result.path.parent, []
    for version in list_versions(base):
        try:
            manifest = read_manifest(base / str(version))
        except ManifestError:
            manifest = None
        if version != result.version and not set(result.forgotten) <= set(manifest.forgotten if manifest else ()):
            found.append(version)
    return found


def warn_of_what_is_left(result: ForgetResult, unfiltered: Sequence[int]) -> None:
    """Print what the filter does not protect, and which versions lie beside it unfiltered."""
    console = output()
    console.print(
        "\nThis protects what the server answers. The weights in the file still hold the class: whoever holds the file "
        "can take the filter off.",
        style="dim",
    )
    if unfiltered:
        versions = f"Version{'s' if len(unfiltered) > 1 else ''} {', '.join(map(str, unfiltered))}"
        console.print(
            f"{versions} in {result.path.parent} still answers a class that is forgotten here, to clients that ask "
            f"by number, and to everybody should version {result.version} be removed.",
            style="yellow",
            highlight=False,
        )
