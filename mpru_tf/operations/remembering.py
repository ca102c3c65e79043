"""Which version in a base path forgets what, by its manifest. Nothing is parsed, nothing is run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpru_tf.errors import ForgetListError, ManifestError, ModelNotFoundError, explain
from mpru_tf.manifest import Manifest, read_manifest
from mpru_tf.saved_model.bundle import has_saved_model
from mpru_tf.serving.source import parse_version


@dataclass(frozen=True)
class BaseVersion:
    """A version directory as a server finds it.

    Attributes:
        version: its number.
        path: the directory.
        is_complete: whether there is a SavedModel in it at all.
        manifest: what it says about itself, None without a readable one.
        problem: why there is no manifest to read although there is a file, None otherwise.
    """

    version: int
    path: Path
    is_complete: bool
    manifest: Manifest | None
    problem: str | None = None

    @property
    def forgotten(self) -> tuple[int, ...]:
        """The classes that its manifest says are forgotten in it."""
        return self.manifest.forgotten if self.manifest is not None else ()


def versions_in(base: str | os.PathLike[str]) -> tuple[BaseVersion, ...]:
    """Every version in a base path, ascending, whatever a server takes for a number (``7``, ``007``, ``-1``).

    Raises:
        ModelNotFoundError: there is no version.
    """
    path = Path(base).absolute()
    children = [child for child in path.iterdir() if child.is_dir()] if path.is_dir() else []
    found = [(number, child) for child in children if (number := parse_version(child.name)) is not None]
    if not found:
        raise ModelNotFoundError(
            explain(
                "This is no base path with versions in it.",
                received=os.fspath(base),
                valid="a directory whose children are numbered version directories",
            )
        )
    return tuple(_read(number, child) for number, child in sorted(found))


def _read(number: int, path: Path) -> BaseVersion:
    try:
        return BaseVersion(number, path, has_saved_model(path), read_manifest(path))
    except ManifestError as error:
        return BaseVersion(number, path, has_saved_model(path), None, str(error))


def the_version(versions: Sequence[BaseVersion], number: int) -> BaseVersion:
    """The one with a number.

    Raises:
        ModelNotFoundError: there is none.
    """
    # Of two names for one number, servers take the one that comes last.
    found = next((version for version in reversed(versions) if version.version == number), None)
    if found is None or not found.is_complete:
        raise ModelNotFoundError(
            explain(
                f"There is no complete version {number} in this base path.",
                received=versions[0].path.parent,
                valid=", ".join(str(version.version) for version in versions if version.is_complete) or None,
            )
        )
    return found


def forgotten_in(versions: Collection[BaseVersion]) -> tuple[int, ...]:
    """Every class that was forgotten in any of these versions, or before them."""
    manifests = [version.manifest for version in versions if version.manifest is not None]
    steps = [index for manifest in manifests for step in manifest.history for index in step["forgotten"]]
    return tuple(sorted({*steps, *(index for manifest in manifests for index in manifest.forgotten)}))


def labels_of(versions: Collection[BaseVersion]) -> dict[int, str]:
    """Labels of forgotten classes, as far as the manifests tell them."""
    return {
        index: label
        for version in versions
        if version.manifest is not None and version.manifest.labels is not None
        for index, label in zip(version.manifest.forgotten, version.manifest.labels, strict=True)
    }


def named(indices: Collection[int], labels: dict[int, str]) -> str:
    """Classes in words."""
    shown = (f"{index} ({labels[index]})" if index in labels else str(index) for index in sorted(indices))
    return f"{'class' if len(indices) == 1 else 'classes'} {', '.join(shown)}"


def check_forgets(
    versions: Sequence[BaseVersion], number: int, what: str, i_know_it_remembers: bool
) -> tuple[int, ...]:
    """Refuse to give requests to a version that would answer a class again that is forgotten in this base path.

    Args:
        versions: all in the base path.
        number: the version.
        what: what would be done, in words ('to roll back to it').
        i_know_it_remembers: do not refuse.

    Returns:
        The classes that it answers although they were forgotten.

    Raises:
        ForgetListError: there are such classes.
        ModelNotFoundError: there is no such version.
    """
    target = the_version(versions, number)
    forgets = named(target.forgotten, {}) if target.forgotten else "nothing"
    back = sorted(set(forgotten_in(versions)) - set(target.forgotten))
    if not back or i_know_it_remembers:
        return tuple(back)
    classes = ",".join(map(str, back))
    raise ForgetListError(
        explain(
            f"Version {number} would answer {named(back, labels_of(versions))} again; refused {what}.",
            received=f"version {number}, which forgets {forgets}",
            valid=_those_that_forget(versions) or None,
            hint=f"`mpru-tf forget {target.path} --classes {classes}` makes a version with its weights that does not. "
            "To bring the class back on purpose: --i-know-it-remembers.",
        )
    )


def _those_that_forget(versions: Sequence[BaseVersion]) -> str:
    wanted = set(forgotten_in(versions))
    fit = [str(version.version) for version in versions if version.is_complete and wanted <= set(version.forgotten)]
    return f"version{'s' if len(fit) > 1 else ''} {', '.join(fit)}" if fit else ""


def local_versions(base_path: str) -> tuple[BaseVersion, ...]:
    """The versions in a base path as a server names it; none if it is not reachable from here by that name."""
    with contextlib.suppress(ModelNotFoundError, OSError):
        return versions_in(base_path)
    return ()
