"""The main job, told in order: plan (read, splice, gate, prune), stage, check, publish."""

from __future__ import annotations

import copy as copying
import datetime
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpru_tf.errors import CorruptModelError, VerificationError, explain
from mpru_tf.manifest import MANIFEST, Manifest
from mpru_tf.planning import NothingNew, Plan, Wishes, plan
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.score_site import Choice
from mpru_tf.versions import find_version, link_tree, list_versions, publish, staged
from mpru_tf.warmup_plan import KEEP, WarmUpWish
from mpru_tf.worker import prepare

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans
    from mpru_tf.redaction import Redaction


@dataclass(frozen=True)
class ForgetResult:
    """What :func:`forget` did.

    Attributes:
        version: the servable version that forgets (the existing one if nothing new was to be forgotten).
        path: its version directory; with ``dry_run``, where it would be.
        source: the version directory it was made from.
        forgotten: indices of all classes forgotten in it, earlier ones included, ascending.
        labels: their labels in the same order, or None when labels are not known.
        classes: number n of classes of the model.
        method: the filter's method.
        leak_gate: 'passed'.
        load_check: 'status' ('passed' or 'skipped') and 'detail'.
        score_site: what was taken for the class scores, and why, in words.
        outputs: the outputs that are filtered, as SIG:KEY.
        dropped_outputs: outputs that were removed from their signatures, as SIG:KEY.
        dropped_endpoints: attributes that Python loaders offer no more, because they answered past the filter.
        warmup: what became of the warm-up file, as the manifest says it.
        files: how the files came over: 'reflink', 'hard link' or 'copy'; None if nothing was written.
        seconds: time of the re-export itself: read, plan, splice, gate, link, write, publish.
        seconds_load_check: time of the load check.
        already_forgotten: True if all classes were forgotten before and nothing was written.
        dry_run: True if nothing was written because that was asked for.
    """

    version: int
    path: Path
    source: Path
    forgotten: tuple[int, ...]
    labels: tuple[str, ...] | None
    classes: int
    method: str
    leak_gate: str
    load_check: dict[str, Any]
    score_site: str
    outputs: tuple[str, ...]
    dropped_outputs: tuple[str, ...]
    dropped_endpoints: tuple[str, ...]
    warmup: dict[str, Any] | None
    files: str | None
    seconds: float
    seconds_load_check: float
    already_forgotten: bool = False
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
        return values


def forget(
    model: str | os.PathLike[str],
    classes: Sequence[str | SupportsIndex] | str | int,
    *,
    method: str | None = None,
    class_means: ClassMeans | str | os.PathLike[str] | None = None,
    temperature: float | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    into: str | os.PathLike[str] | None = None,
    outputs: Sequence[str] = (),
    sites: Sequence[str] = (),
    scores: str | None = None,
    num_classes: int | None = None,
    multi_label: bool = False,
    allow_outputs: Sequence[str] = (),
    drop_outputs: Sequence[str] = (),
    force: bool = False,
    redact_labels: bool = False,
    warmup: str | os.PathLike[str] = KEEP,
    warmup_batch_sizes: Sequence[int] | int | str | os.PathLike[str] | None = None,
    copy: bool = False,
    load_check: bool = True,
    dry_run: bool = False,
) -> ForgetResult:
    """Publish the next version of a served model, in which no output answers the given classes.

    The filter is baked into the graph at the class scores; weights, signatures and assets stay as they are, and the
    version directory is published with one rename. On a version that already forgets classes, one filter with the
    union takes the old one's place.

    The weights still hold what was learned: whoever has the files can take the filter off. And as long as an
    unfiltered version lies in the base path, it answers clients that ask for it by number.

    Args:
        model: a version directory, or a base path, which stands for its newest version.
        classes: indices in [0, n) or labels of the classes to forget, at least one, not all.
        method: 'renormalize', 'mean', 'gram_schmidt' or 'tempered'; 'mask' for multi-label models, and only for them.
            Default: that of the version's present filter, or 'tempered'.
        class_means: a :class:`ClassMeans`, or the path of one saved as JSON; required by 'mean' and 'gram_schmidt'.
        temperature: of 'tempered', in [1, 1000]. Default: that of the version's present filter, or 1.5.
        labels: one per class, or the path of a file with them. Default: those found with or in the model.
        into: base path for the new version. Default: that of ``model``.
        outputs: SIG:KEY of outputs that are computed from the class scores, to tell several class vectors apart.
        sites: names of the tensors that hold the class scores, as :func:`inspect` shows them, likewise.
        scores: 'logits' or 'probabilities', what the class scores hold, where the graph does not tell.
        num_classes: n, where the graph does not tell.
        multi_label: each class is judged on its own by a Sigmoid: forgotten classes answer 0, the others stay as they
            are. The method is then 'mask'.
        allow_outputs: SIG:KEY of outputs to keep although they are computed before the class scores (embeddings).
        drop_outputs: SIG:KEY of outputs to remove from their signatures.
        force: go on when the class means do not meet the preconditions.
        redact_labels: remove the labels of the forgotten classes too, from constants, tables, assets and the manifest;
            refused where that cannot be done. A version made from a redacted one is redacted as well.
        warmup: warm-up requests, which servers replay before the new version answers anyone: 'keep' those of the
            version it is made from, 'none', 'auto' to make some up from the signatures, or the path of a file with
            examples (.npz, .npy, .json as REST takes it) or with recorded requests (TFRecords of PredictionLog). All
            are replayed in the load check.
        warmup_batch_sizes: how many examples a request holds, or the path of a batching parameters file: then 1 and
            its allowed sizes. Recorded requests stay as long as they are, and are brought to these sizes besides.
            Default: 1.
        copy: copy the weights instead of sharing their bytes with the source version.
        load_check: load the new version in a Session before it is published, ask it, and compare with the reference.
        dry_run: do everything but write.

    Returns:
        A :class:`ForgetResult`.

    Raises:
        ModelError: the model cannot be found, read or filtered.
        ForgetListError, LabelsError: about ``classes`` or ``labels``; also if the newest version in the target base
            path forgets a class that the new one would answer again, or if a label cannot be removed.
        ClassMeansError: about ``class_means``; :class:`PreconditionError` if they are not trustworthy.
        LeakError: an output would still answer a forgotten class.
        ManifestError: the version was filtered before, but what its manifest says does not hold.
        DataError: about ``warmup`` and ``warmup_batch_sizes``.
        VerificationError: the new version does not answer as it must, or crashes or hangs when it is loaded or asked,
            or refuses a warm-up request; it is not published.
        PublishError: it could not be written.

    Source: MPRU, arXiv 2510.26230 (an output filter: projection, then redistribution); the splice is ours.
    """
    found = find_version(model)
    warm_up = WarmUpWish.of(warmup, warmup_batch_sizes, replayed=load_check)
    if load_check and not dry_run:
        prepare()  # imports TensorFlow in a process of its own, while this one reads and plans
    import mpru_tf.layer  # noqa: F401  imports TensorFlow, which `seconds` is not to count

    started = time.perf_counter()
    wishes = Wishes(
        classes=[classes] if isinstance(classes, str | SupportsIndex) else classes,
        method=method,
        class_means=class_means,
        temperature=temperature,
        labels=labels,
        into=into,
        choice=Choice.of(outputs, sites, scores, num_classes, multi_label),
        allow_outputs=tuple(allow_outputs),
        drop_outputs=tuple(drop_outputs),
        force=force,
        redact_labels=redact_labels,
        warm_up=warm_up,
    )
    planned = plan(found, wishes)
    seconds = time.perf_counter() - started
    if isinstance(planned, NothingNew):
        return _nothing_new(planned, seconds)
    if dry_run:
        version = max(list_versions(planned.base), default=0) + 1
        skipped = {"status": "skipped", "detail": "dry run"}
        return _result(version, planned, skipped, planned.warm_up.said, None, seconds, 0.0, True)
    return _write(planned, copy, load_check, seconds)


def _nothing_new(plan: NothingNew, seconds: float) -> ForgetResult:
    found, earlier, site = plan.found, plan.earlier, plan.site
    return ForgetResult(
        version=found.version or 0,
        path=found.path,
        source=found.path,
        forgotten=earlier.forgotten,
        labels=earlier.labels,
        classes=earlier.classes,
        method=earlier.method,
        leak_gate=earlier.leak_gate,
        load_check=earlier.load_check,
        score_site=f"{site.kind}. {site.reason}",
        outputs=site.outputs,
        dropped_outputs=earlier.dropped_outputs,
        dropped_endpoints=earlier.dropped_endpoints,
        warmup=earlier.warmup,
        files=None,
        seconds=seconds,
        seconds_load_check=0.0,
        already_forgotten=True,
    )


# -------------------------------------------------------------------------------------------------------- writing
def _write(plan: Plan, copy: bool, load_check: bool, seconds: float) -> ForgetResult:
    started = time.perf_counter()
    source = plan.found.path
    left_out = {*bundles.SAVED_MODEL_FORMS, bundles.KERAS_METADATA_PB, bundles.FINGERPRINT_PB, MANIFEST}
    left_out |= plan.warm_up.left_out
    with staged(plan.base) as staging:
        files = link_tree(source, staging, without=left_out, copy=copy)
        (staging / bundles.SAVED_MODEL_PB).write_bytes(plan.data)
        if plan.redaction is not None:
            plan.redaction.rewrite_files(staging)
        if (source / bundles.FINGERPRINT_PB).is_file():
            _write_fingerprint(staging)
        plan.warm_up.write(staging)
        checked, warmup, seconds_load_check = _checked(staging, plan, load_check)
        _manifest(plan, staging, checked, warmup).write(staging)
        if plan.redaction is not None:
            plan.redaction.check(staging)
        version = publish(staging, plan.base)
    own = seconds + time.perf_counter() - started - seconds_load_check
    return _result(version, plan, checked, warmup, files, own, seconds_load_check, False)


def _write_fingerprint(directory: Path) -> None:
    # TensorFlow has no public function that writes a fingerprint (2.19 to 2.21 write one only inside saved_model.save).
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    try:
        fingerprint = bytes(fingerprinting.CreateFingerprintDef(str(directory)))
    except fingerprinting.FingerprintException:
        return  # a name that it does not expect; saved_model.save writes none then, and servers need none
    except RuntimeError as error:  # a failed CHECK of protobuf's: a node without an attribute that its op has
        raise CorruptModelError(
            explain(
                "TensorFlow cannot take the fingerprint of the graph.",
                received=str(error),
                valid="nodes with all attributes of their ops",
                hint="The SavedModel is damaged; copy the version directory again, or export the model again.",
            )
        ) from error
    (directory / bundles.FINGERPRINT_PB).write_bytes(fingerprint)


def _checked(staging: Path, plan: Plan, load_check: bool) -> tuple[dict[str, Any], dict[str, Any], float]:
    """What the load check and the replay of the warm-up requests showed, and how long they took."""
    if not load_check:
        return {"status": "skipped", "detail": "not asked for"}, plan.warm_up.said, 0.0
    from mpru_tf.verification import check_before_publishing

    started = time.perf_counter()
    # A version that carries a filter already cannot be asked for the raw answers.
    source = plan.found.path if plan.earlier is None else None
    checked = check_before_publishing(staging, source, plan.site, plan.spec, replay=plan.warm_up.replay)
    replayed = checked.pop("warmup", None)
    if replayed is None and plan.warm_up.replay is not None and plan.warm_up.mode != KEEP:
        raise VerificationError(
            explain(
                "The warm-up requests could not be tried, so the new version was not published.",
                received=checked["detail"],
                hint="Leave them out with --warmup none, or keep those of the source version with --warmup keep.",
            )
        )
    said = plan.warm_up.said if replayed is None else {**plan.warm_up.said, **replayed, "replayed": True}
    return checked, said, time.perf_counter() - started


def _manifest(plan: Plan, staging: Path, checked: dict[str, Any], warmup: dict[str, Any]) -> Manifest:
    from mpru_tf import __version__

    index_sha256 = bundles.index_digest(staging)
    earlier = plan.earlier
    history = (*earlier.history, earlier.step()) if earlier is not None else ()
    redact = plan.redaction.values if plan.redaction is not None else copying.deepcopy
    return Manifest(
        tool_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        source={
            "path": redact(str(plan.found.path)),
            "version": plan.found.version,
            "saved_model_sha256": plan.source_sha256,
            "variables_index_sha256": index_sha256,
            "same_base_path": plan.base == plan.found.base,
        },
        saved_model_sha256=hashlib.sha256(plan.data).hexdigest(),
        variables_index_sha256=index_sha256,
        classes=plan.spec.classes,
        forgotten=plan.spec.forgotten,
        labels=_manifest_labels(plan),
        method=plan.spec.method,
        temperature=plan.spec.temperature,
        choice=plan.choice,
        constants_sha256=plan.spec.digest(),
        preconditions=plan.preconditions,
        splices=plan.splices,
        dropped_outputs=plan.dropped_outputs,
        allowed_outputs=tuple(dict.fromkeys(plan.allowed_outputs)),
        dropped_endpoints=plan.dropped_endpoints,
        leak_gate="passed",
        load_check=redact(checked),
        history=tuple(_redacted(step, plan.redaction) for step in history),
        redacted=plan.redaction is not None,
        warmup=redact(warmup),
    )


def _redacted(step: dict[str, Any], redaction: Redaction | None) -> dict[str, Any]:
    """A step of the history without the labels and the path in which a forgotten label may stand."""
    if redaction is None:
        return step
    changed: dict[str, Any] = {}
    if step.get("labels") is not None:
        changed["labels"] = [redaction.placeholder(index) for index in step["forgotten"]]
    if "source" in step:
        changed["source"] = {**step["source"], "path": redaction.text(step["source"]["path"])}
    return {**step, **changed}


def _manifest_labels(plan: Plan) -> tuple[str, ...] | None:
    if plan.redaction is None:
        return plan.labels
    return tuple(plan.redaction.placeholder(index) for index in plan.spec.forgotten)


def _result(
    version: int,
    plan: Plan,
    checked: dict[str, Any],
    warmup: dict[str, Any],
    files: str | None,
    seconds: float,
    seconds_load_check: float,
    dry_run: bool,
) -> ForgetResult:
    return ForgetResult(
        version=version,
        path=plan.base / str(version),
        source=plan.found.path,
        forgotten=plan.spec.forgotten,
        labels=plan.labels,
        classes=plan.spec.classes,
        method=plan.spec.method,
        leak_gate="passed",
        load_check=checked,
        score_site=f"{plan.site.kind}. {plan.site.reason}",
        outputs=plan.site.outputs,
        dropped_outputs=plan.dropped_outputs,
        dropped_endpoints=plan.dropped_endpoints,
        warmup=warmup,
        files=files,
        seconds=seconds,
        seconds_load_check=seconds_load_check,
        dry_run=dry_run,
    )
