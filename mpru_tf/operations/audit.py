"""Which version answers which forgotten class: in a base path, and in the server that answers from it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpru_tf.errors import ManifestError, MPRUError, ServingError
from mpru_tf.manifest import Manifest
from mpru_tf.operations.client import AVAILABLE, USUAL_LABELS, Progress, Server, silent
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.remembering import BaseVersion, forgotten_in, labels_of, named, versions_in
from mpru_tf.saved_model.bundle import FILTER_PREFIX, SAVED_MODEL_FORMS
from mpru_tf.unlearning.record import unlearned_in
from mpru_tf.versions import STAGING_PREFIX

OLDER_REMEMBERS, NEWEST_REMEMBERS = "older_version_remembers", "newest_version_remembers"
DIGEST, LEAK, FILTER, WEIGHTS = "digest_mismatch", "leak", "filter_broken", "weights_changed"
MANIFEST_MISSING, MANIFEST_UNREADABLE, DAMAGED = "manifest_missing", "manifest_unreadable", "damaged_version"
SERVER_REMEMBERS, LABEL_REMEMBERS, NOT_IN_BASE = "server_remembers", "label_remembers", "server_version_not_in_base"
STALE_STAGING = "stale_staging"

FINDINGS: Mapping[str, str] = {
    OLDER_REMEMBERS: "an older version in the base path answers a class that is forgotten",
    NEWEST_REMEMBERS: "so does the newest: the class is back",
    DIGEST: "a filtered version is not what its manifest says",
    LEAK: "the leak gate refuses a filtered version",
    FILTER: "the filter in a version, run alone, lets a forgotten class through",
    WEIGHTS: "a variable of a filtered version does not match its checksum",
    MANIFEST_MISSING: "a version carries a filter, but no manifest",
    MANIFEST_UNREADABLE: "a manifest cannot be read",
    DAMAGED: "a version is incomplete or cannot be read",
    SERVER_REMEMBERS: "the server answers from a version that answers a forgotten class",
    LABEL_REMEMBERS: "a label stands for such a version",
    NOT_IN_BASE: "the server answers from a version that is not in the base path, so nobody can say",
    STALE_STAGING: "what a killed export left behind",
}
"""Every kind of finding, and what it means."""

_OF_CHECK = {"digests": DIGEST, "leak gate": LEAK, "filter": FILTER, "variables": WEIGHTS}
_SLACK = datetime.timedelta(seconds=5)  # a manifest tells whole seconds, and clocks of file servers differ


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it must be.

    Attributes:
        kind: one of :data:`FINDINGS`.
        version: the version it is about, if any.
        classes: the forgotten classes that are, or may be, answered.
        detail: one sentence.
    """

    kind: str
    version: int | None
    classes: tuple[int, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self), "classes": list(self.classes)}


@dataclass(frozen=True)
class AuditedVersion:
    """One version in the base path.

    Attributes:
        version: its number.
        path: its directory.
        forgotten: the classes that its manifest says are forgotten.
        answers: the forgotten classes that it answers, or may answer.
        is_sure: False if something about it is wrong, so that it has to be assumed.
        state: what the server says about it; None if no server was asked, or it does not know it.
        unlearned: the classes that its record says were unlearned in its weights. That guarantees no answer, so it
            forgets none of them that is not in ``forgotten`` too.
    """

    version: int
    path: Path
    forgotten: tuple[int, ...]
    answers: tuple[int, ...]
    is_sure: bool
    state: str | None
    unlearned: tuple[int, ...] = ()

    @property
    def unguarded(self) -> tuple[int, ...]:
        """The classes that were unlearned in the weights, but that no filter holds back."""
        return tuple(index for index in self.unlearned if index not in self.forgotten)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        lists = {name: list(getattr(self, name)) for name in ("forgotten", "answers", "unlearned")}
        return {**asdict(self), "path": str(self.path), **lists}


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        base: the base path.
        forgotten: every class that is forgotten in any version of it, or was before.
        class_labels: labels of these classes, as far as the manifests tell them.
        versions: every version, ascending.
        labels: version by label, as the server has it, or else the configuration file.
        findings: what is not as it must be.
        unseen: what could not be looked at, and why.
    """

    base: Path
    forgotten: tuple[int, ...]
    class_labels: Mapping[int, str]
    versions: tuple[AuditedVersion, ...]
    labels: Mapping[str, int]
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether all of it was looked at and nothing found."""
        return not self.findings and not self.unseen

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "base": str(self.base),
            "clean": self.is_clean,
            "forgotten": list(self.forgotten),
            "class_labels": {str(index): label for index, label in self.class_labels.items()},
            "versions": [version.to_dict() for version in self.versions],
            "labels": dict(self.labels),
            "findings": [finding.to_dict() for finding in self.findings],
            "unseen": list(self.unseen),
        }


def audit(
    base: str | os.PathLike[str],
    *,
    server: Server | None = None,
    config: str | os.PathLike[str] | None = None,
    labels: Sequence[str] = (),
    full: bool = False,
    progress: Progress = silent,
) -> Audit:
    """Look for whatever may answer a forgotten class.

    Every filtered version is held against its manifest, walked by the leak gate, and its filter run alone. The weights
    are read, too, where ``full`` is set or a file was changed after the version was published: versions share the
    bytes of their weights. No model is loaded, and nothing is changed.

    Args:
        base: the base path.
        server: also look at what this server answers from.
        config: its configuration file, for its labels.
        labels: names of further labels to ask the server for; 'stable' and 'canary' always are.
        full: read every byte of the weights.
        progress: told what is going on.

    Raises:
        ModelNotFoundError: there is no version in ``base``.
        ServingError: ``config`` cannot be read. A server that cannot be asked is told in :attr:`Audit.unseen`.
    """
    versions = versions_in(base)
    forgotten = forgotten_in(versions)
    found: list[Finding] = []
    audited = []
    for version in versions:
        progress(f"looking at version {version.version}")
        unlearned, doubts = _unlearned(version)
        own = list(_wrong_with(version, forgotten, full)) or doubts
        found.extend(own)
        doubtful = {index for finding in own for index in finding.classes}
        answers = tuple(sorted((set(forgotten) - set(version.forgotten)) | doubtful))
        is_sure = not own
        if answers and version.is_complete:
            found.extend(_remembers(version, versions, tuple(sorted(set(answers) - doubtful)), forgotten))
        audited.append(
            AuditedVersion(version.version, version.path, version.forgotten, answers, is_sure, None, unlearned)
        )
    found.extend(_stale(versions[0].path.parent))
    configured = _configured(config, server)
    unseen: list[str] = []
    reached: dict[str, int] = dict(configured)
    if server is not None:
        try:
            progress(f"asking {server.target}")
            states = {state.version: state.state for state in server.versions()}
            audited = [_with_state(version, states) for version in audited]
            asked = dict.fromkeys((*USUAL_LABELS, *labels, *configured))
            answered = {label: server.version_of_label(label) for label in asked}
            reached = {label: number for label, number in answered.items() if number is not None}
            if not states:
                unseen.append(f"{server.target} does not know the model {server.model}")
        except ServingError as error:
            unseen.append(str(error))
        else:
            found.extend(_served(audited, states, forgotten))
    found.extend(_labelled(audited, reached))
    return Audit(
        base=versions[0].path.parent,
        forgotten=forgotten,
        class_labels=labels_of(versions),
        versions=tuple(audited),
        labels=reached,
        findings=tuple(found),
        unseen=tuple(unseen),
    )


# --------------------------------------------------------------------------------------------------------- on the disk
def _wrong_with(version: BaseVersion, forgotten: tuple[int, ...], full: bool) -> Iterator[Finding]:
    """What is wrong with one version, apart from what it forgets."""
    from mpru_tf.verification import verify

    number, name = version.version, f"version {version.version}"
    if not version.is_complete:
        yield Finding(DAMAGED, number, (), f"{name} holds no SavedModel; a server that takes it up fails to load it")
    elif version.problem is not None:
        yield Finding(MANIFEST_UNREADABLE, number, forgotten, f"{name}: {version.problem}")
    elif version.manifest is None:
        if _carries_filter(version.path):
            yield Finding(MANIFEST_MISSING, number, forgotten, f"{name} carries a filter, but its manifest is gone")
    else:
        try:
            checks = verify(
                version.path, full=full or _touched(version.path, version.manifest), load_check=False
            ).checks
        except MPRUError as error:
            yield Finding(DAMAGED, number, version.forgotten, f"{name}: {error}")
            return
        for check in checks:
            if check.passed is False:
                kind = _OF_CHECK.get(check.name, DAMAGED)
                classes = version.forgotten if kind in (LEAK, FILTER) else ()
                yield Finding(kind, number, classes, f"{name}: {check.detail}")


def _unlearned(version: BaseVersion) -> tuple[tuple[int, ...], list[Finding]]:
    """The classes of a version's record, and what is wrong with that record."""
    if not version.is_complete:
        return (), []
    try:
        return unlearned_in(version.path), []
    except ManifestError as error:
        return (), [Finding(DAMAGED, version.version, (), f"version {version.version}: {error}")]


def _carries_filter(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(
            FILTER_PREFIX.encode() in (path / name).read_bytes()
            for name in SAVED_MODEL_FORMS
            if (path / name).is_file()
        )
    return False


def _touched(path: Path, manifest: Manifest) -> bool:
    """Whether any variable file is younger than the version: linking, cloning and copying leave its time alone."""
    created = datetime.datetime.fromisoformat(manifest.created) + _SLACK
    with contextlib.suppress(OSError):
        return any(file.stat().st_mtime > created.timestamp() for file in (path / "variables").iterdir())
    return False


def _remembers(
    version: BaseVersion, versions: Sequence[BaseVersion], classes: tuple[int, ...], forgotten: tuple[int, ...]
) -> Iterator[Finding]:
    if not classes:
        return
    told = named(classes, labels_of(versions))
    if version.version < versions[-1].version:
        how = "to clients that ask for its number, and to all should the newer ones go"
        yield Finding(OLDER_REMEMBERS, version.version, classes, f"version {version.version} answers {told}, {how}")
    else:
        yield Finding(
            NEWEST_REMEMBERS, version.version, classes, f"version {version.version}, the newest, answers {told}"
        )


def _stale(base: Path) -> Iterator[Finding]:
    for leftover in sorted(base.glob(f"{STAGING_PREFIX}*")):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an export at work holds it
                yield Finding(STALE_STAGING, None, (), f"{leftover.name} was left behind; the next `forget` removes it")
            finally:
                os.close(descriptor)


# ------------------------------------------------------------------------------------------------------- in the server
def _configured(config: str | os.PathLike[str] | None, server: Server | None) -> dict[str, int]:
    if config is None:
        return {}
    read = Configuration.read(config)
    names = [entry.name for entry in read.message.model_config_list.config]
    model = server.model if server is not None else names[0] if len(names) == 1 else None
    if model is None:
        raise ServingError("The configuration names several models: say which is meant with --model and --server.")
    return read.labels(model)


def _with_state(version: AuditedVersion, states: Mapping[int, str]) -> AuditedVersion:
    return AuditedVersion(**{**version.__dict__, "state": states.get(version.version)})


def _served(
    versions: Sequence[AuditedVersion], states: Mapping[int, str], forgotten: tuple[int, ...]
) -> Iterator[Finding]:
    available = [number for number, state in states.items() if state == AVAILABLE]
    by_number = {version.version: version for version in versions}
    for number in available:
        whom = "to all who name no version" if number == max(available) else "to clients that ask for its number"
        version = by_number.get(number)
        if version is None:
            if forgotten:
                yield Finding(
                    NOT_IN_BASE, number, forgotten, f"version {number} answers {whom}, but is not in the base path"
                )
        elif version.answers:
            may = "answers" if version.is_sure else "may answer"
            yield Finding(
                SERVER_REMEMBERS, number, version.answers, f"version {number} {may} {named(version.answers, {})} {whom}"
            )


def _labelled(versions: Sequence[AuditedVersion], labels: Mapping[str, int]) -> Iterator[Finding]:
    by_number = {version.version: version for version in versions}
    for label, number in labels.items():
        version = by_number.get(number)
        if version is not None and version.answers:
            detail = f"the label {label!r} stands for version {number}, which answers {named(version.answers, {})}"
            yield Finding(LABEL_REMEMBERS, number, version.answers, detail)
