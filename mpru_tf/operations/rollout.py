"""A new version, from publishing to the stable label, with a look at its answers before clients get them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import MPRUError, ServingError, VerificationError, explain
from mpru_tf.operations import configuration, labelling, sampling
from mpru_tf.operations.client import Progress, Server, silent
from mpru_tf.operations.comparing import Comparison, compare, load_means
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.remembering import BaseVersion, check_forgets, the_version, versions_in
from mpru_tf.operations.waiting import wait_until_available
from mpru_tf.versions import find_version

if TYPE_CHECKING:
    from mpru_tf.operations.client import Answer
    from mpru_tf.operations.sampling import Request, Shown

_PATIENCE = 5.0  # seconds after which a version that was unloaded before is loading again, at a poll of one second


@dataclass(frozen=True)
class Rollout:
    """What rolling a version out did.

    Attributes:
        base: the base path.
        version: the new version.
        before: the version that answered before, None if none did.
        published: whether it was made here, or lay in the base path before.
        forgotten: the classes that it forgets.
        labels: the labels that were moved, with the version that each stands for now; empty without a configuration.
        comparison: what asking both versions the same showed.
        steps: what was done, one sentence each.
    """

    base: Path
    version: int
    before: int | None
    published: bool
    forgotten: tuple[int, ...]
    labels: Mapping[str, int]
    comparison: Comparison
    steps: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "base": str(self.base),
            "version": self.version,
            "before": self.before,
            "published": self.published,
            "forgotten": list(self.forgotten),
            "labels": dict(self.labels),
            "comparison": self.comparison.to_dict(),
            "steps": list(self.steps),
        }


def rollout(
    base: str | os.PathLike[str],
    server: Server,
    *,
    classes: Sequence[str] = (),
    version: int | None = None,
    config: str | os.PathLike[str] | None = None,
    canary_label: str = "canary",
    stable_label: str = "stable",
    samples: str | os.PathLike[str] | None = None,
    requests: int = 8,
    timeout: float = 300.0,
    i_know_it_remembers: bool = False,
    progress: Progress = silent,
    **forget_options: Any,
) -> Rollout:
    """Publish a version that forgets classes (or take one), wait, see that it answers, compare it with the old one.

    With a configuration file, the canary label goes to the new version before the comparison and the stable label
    after it; whatever fails, both are put back. Without one no labels are in use: clients that name no version get the
    new one as soon as it is loaded, and the comparison tells of it afterwards.

    Args:
        base: the base path, as the server's files lie here.
        server: the model.
        classes: classes to forget, as :func:`mpru_tf.forget` takes them.
        version: a version in the base path, in place of ``classes``.
        config: the server's configuration file.
        canary_label: label that goes to the new version first.
        stable_label: label that most clients ask for.
        samples: file of examples to compare the answers to. Default: made up from the signature.
        requests: how many requests to compare.
        timeout: seconds to wait until the new version is AVAILABLE.
        i_know_it_remembers: also a version that answers a class that another version in the base path forgets.
        progress: told what is going on.
        **forget_options: what else :func:`mpru_tf.forget` takes.

    Raises:
        MPRUError: as :func:`mpru_tf.forget` for ``classes``;
        ServingError: the server cannot be asked, does not load the version, does not answer, or refuses a label; or
            the model's version policy would unload the old version, to which the stable label belongs.
        VerificationError: the new version is not as it was published, or answers wrongly.
        ForgetListError: it would answer a forgotten class again.
    """
    if bool(classes) == (version is not None):
        raise ServingError(
            explain("Either classes to forget or a version is rolled out.", valid="--classes or --version, one of them")
        )
    run = _Run(Path(base).absolute(), server, config, timeout, progress)
    with run.labels_put_back(stable_label):
        run.choose_old(stable_label, version)
        target = None if version is None else run.check(version, i_know_it_remembers)
        shown = sampling.shown_by(target.path if target is not None else find_version(base).path)
        if samples is not None:
            run.requests = sampling.from_file(samples, shown, requests)
        old_answers = run.ask_old(shown, requests)
        new, published = run.publish(classes, forget_options) if version is None else (version, False)
        if target is None:
            target = run.check(new, i_know_it_remembers)
        run.load(new)
        shown = sampling.shown_by(target.path)  # outputs may have been dropped
        if not run.requests:
            run.requests = sampling.made_up(server, new, shown, requests)
        run.warm(new)
        if config is not None:
            run.give(canary_label, new)
        new_answers = run.ask(new)
        before = None if run.old is None else run.manifest_of(run.old)
        means = load_means(forget_options.get("class_means"))
        comparison = compare(run.requests, old_answers, new_answers, shown, before, target.manifest, means)
        run.say(f"its answers to {comparison.requests} requests are right, held against {comparison.against}")
        if config is not None:
            run.give(stable_label, new)
        else:
            run.say("no configuration file was named, so no label was moved: who names no version gets the newest")
    moved = dict.fromkeys((canary_label, stable_label), new) if config is not None else {}
    return Rollout(run.base, new, run.old, published, target.forgotten, moved, comparison, tuple(run.steps))


@dataclass
class _Run:
    """One rollout on its way."""

    base: Path
    server: Server
    config: str | os.PathLike[str] | None
    timeout: float
    progress: Progress
    old: int | None = None
    requests: list[Request] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    original: Configuration | None = None
    current: Configuration | None = None
    published: int | None = None

    def say(self, step: str) -> None:
        self.steps.append(step)
        self.progress(step)

    @contextlib.contextmanager
    def labels_put_back(self, stable_label: str) -> Iterator[None]:
        """Hold the configuration file; whatever goes wrong, server and file get back what they had."""
        with contextlib.ExitStack() as stack:
            if self.config is not None:
                stack.enter_context(configuration.alone_with(self.config))
                self.original = self.current = Configuration.read(self.config)
                self.original.labels(self.server.model)
            try:
                yield
            except BaseException as error:
                back = self._put_back()
                if not isinstance(error, MPRUError) or not (back or self.published):
                    raise
                if self.published is not None:
                    back += f" Version {self.published} is published and stays in {self.base}."
                raise type(error)(f"{error}{back}") from error

    def _put_back(self) -> str:
        if self.config is None or self.original is None or self.current is None or self.current is self.original:
            return ""
        try:
            configuration.replace(self.server, self.config, self.current, self.original)
        except ServingError as error:
            return f" The labels could not be put back ({error})."
        labels = self.original.labels(self.server.model)
        said = ", ".join(f"{label}: version {version}" for label, version in labels.items()) or "none"
        return f" The labels are as they were before ({said})."

    def choose_old(self, stable_label: str, new: int | None) -> None:
        """The version to compare with: that of the stable label, else the newest that is not the new one."""
        available = [version for version in self.server.available() if version != new]
        self.old = max(available, default=None)
        if self.original is None:
            return
        labelled = self.original.labels(self.server.model).get(stable_label)
        if labelled is not None and labelled != new:
            if labelled not in available:
                raise ServingError(
                    explain(
                        f"The label {stable_label!r} stands for a version that is not loaded.",
                        received=f"version {labelled}",
                        hint="Put that right first: `mpru-tf label move`.",
                    )
                )
            self.old = labelled
            self._check_policy(labelled, stable_label, new)

    def _check_policy(self, old: int, label: str, new: int | None) -> None:
        """The policy must not unload the old version for the new one while clients ask for it by its label."""
        assert self.original is not None
        kept = self.original.kept(self.server.model)
        numbers = sorted({version.version for version in versions_in(self.base)})
        if new is None:
            numbers.append(max(numbers) + 1)
        if kept is not None and old not in numbers[-kept:]:
            needed = sum(number >= old for number in numbers)
            raise ServingError(
                explain(
                    f"The version policy would unload version {old}, for which the label {label!r} stands, as soon as "
                    "the new version is loaded.",
                    received=f"the newest {kept}",
                    valid=f"model_version_policy {{ latest {{ num_versions: {needed} }} }}, all, or specific",
                    hint="Change the configuration file, and have the server reload it.",
                )
            )

    def publish(self, classes: Sequence[str], options: Mapping[str, Any]) -> tuple[int, bool]:
        from mpru_tf.reexport import forget

        self.progress("publishing")
        result = forget(self.base, classes, **options)
        if result.already_forgotten:
            self.say(f"version {result.version} forgets all of this already; nothing was published")
            return result.version, False
        self.published = result.version
        self.say(f"version {result.version} published, load check {result.load_check['status']}")
        return result.version, True

    def check(self, new: int, i_know_it_remembers: bool) -> BaseVersion:
        from mpru_tf.verification import verify

        versions = versions_in(self.base)
        check_forgets(versions, new, "to roll it out", i_know_it_remembers)
        target = the_version(versions, new)
        if target.manifest is not None and self.published is None:
            found = verify(target.path, load_check=False)
            if not found.passed:
                raise VerificationError(
                    explain(
                        f"Version {new} is not as it was published.",
                        received="; ".join(check.detail for check in found.checks if check.passed is False),
                    )
                )
        return target

    def load(self, new: int) -> None:
        """Wait until the server has it, after adding it to a policy that names versions."""
        if self.config is not None and self.current is not None:
            specific = self.current.specific_versions(self.server.model)
            if specific is not None and new not in specific:
                after = self.current.with_specific_versions(self.server.model, [*specific, new])
                configuration.replace(self.server, self.config, self.current, after)
                self.current = after
                self.say(f"version {new} added to the version policy")
        waited = wait_until_available(self.server, new, self.timeout, progress=self.progress, patience=_PATIENCE)
        self.say(f"version {new} is AVAILABLE after {waited.seconds:.1f} s")

    def warm(self, new: int) -> None:
        for name in dict.fromkeys(request.signature for request in self.requests):
            request = next(request for request in self.requests if request.signature == name)
            answer = self.server.predict(name, request.inputs, version=new)
            self.say(f"it answers {name} in {answer.seconds * 1e3:.1f} ms at first")

    def ask(self, version: int) -> list[Answer]:
        self.progress(f"asking version {version} {len(self.requests)} requests")
        self.server.predict(self.requests[0].signature, self.requests[0].inputs, version=version)  # not timed: warm
        return [self.server.predict(request.signature, request.inputs, version=version) for request in self.requests]

    def ask_old(self, shown: Shown, number: int) -> list[Answer] | None:
        """The old version's answers; None without one, also if the server unloads it while it is asked.

        It does so by itself, without labels, when the new version lay in the base path before.
        """
        if self.old is None:
            return None
        try:
            if not self.requests:
                self.requests = sampling.made_up(self.server, self.old, shown, number)
            return self.ask(self.old)
        except ServingError:
            if self.old in self.server.available():
                raise
        self.say(f"version {self.old} was unloaded by the server before it could be compared with")
        return None

    def manifest_of(self, version: int) -> Any:
        found = [entry for entry in versions_in(self.base) if entry.version == version]
        return found[0].manifest if found else None

    def give(self, label: str, new: int) -> None:
        assert self.config is not None
        assert self.current is not None
        if self.current.labels(self.server.model).get(label) != new:
            after = self.current.with_label(self.server.model, label, new)
            labelling.give(self.server, self.config, self.current, after, label)
            self.current = after
        self.say(f"label {label} stands for version {new}")
