"""Does a version directory do what its manifest says? Read it, walk it, load it, ask it.

Reading, splicing and walking a model never run it; loading and asking it do, and happen in a process of its own
(:mod:`mpru_tf.worker`, :mod:`mpru_tf.load_check`).
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpru_tf import worker
from mpru_tf.errors import (
    ManifestError,
    MPRUError,
    VerificationError,
    explain,
)
from mpru_tf.filters import MASK
from mpru_tf.inspection import unfiltered_graphs
from mpru_tf.load_check import SOURCE, Check, source_is_broken
from mpru_tf.manifest import Manifest, read_manifest
from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.leaks import LeakGate, refuse, score_family
from mpru_tf.saved_model.score_site import ScoreSite, SitePoint
from mpru_tf.saved_model.sites import survey
from mpru_tf.saved_model.splice import Splice, filter_alone
from mpru_tf.unlearning.record import unlearned_in
from mpru_tf.versions import find_version
from mpru_tf.warmup_replay import WARM_UP

if TYPE_CHECKING:
    from mpru_tf.filters import FilterSpec
    from mpru_tf.saved_model.bundle import Bundle
    from mpru_tf.saved_model.graph import Graph
    from mpru_tf.warmup_replay import Replay
    from mpru_tf.worker import Limits


@dataclass(frozen=True)
class Verification:
    """What verifying one version directory showed.

    Attributes:
        path: the version directory.
        forgotten: the classes that its manifest says are forgotten.
        checks: everything that was looked at, in order.
    """

    path: Path
    forgotten: tuple[int, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that could be looked at was wrong."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "path": str(self.path),
            "forgotten": list(self.forgotten),
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
        }


def verify(version_dir: str | os.PathLike[str], full: bool = False, load_check: bool = True) -> Verification:
    """Check a filtered version against its manifest, its graph and its answers.

    Args:
        version_dir: a version directory, or a base path, which stands for its newest version.
        full: also read every byte of the variables and hold each tensor against the checksum in variables.index.
        load_check: also load the version in a Session and ask it.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError: there is no readable SavedModel.
        ManifestError: it carries no manifest, so there is nothing to hold it against; also where classes were
            unlearned in its weights, which guarantees no answer.
    """
    directory = find_version(version_dir).path
    manifest = read_manifest(directory)
    if manifest is None:
        unlearned = unlearned_in(directory)  # of a filtered version, the record is held against nothing here
        if unlearned:
            raise ManifestError(
                explain(
                    "Classes were unlearned in this version's weights, but nothing filters its answers: there is no "
                    "manifest whose digests and filter could be verified, and nothing guarantees what it answers.",
                    received=f"{directory}, classes {', '.join(map(str, unlearned))}",
                    hint="See what it answers with `mpru-tf evaluate`, or have it filtered with `mpru-tf forget`.",
                )
            )
        raise ManifestError(
            explain(
                "This version carries no manifest, so nothing was forgotten in it by mpru_tf.",
                received=str(directory),
                valid="a version directory that `mpru-tf forget` wrote",
                hint="See what the model answers with `mpru-tf inspect`.",
            )
        )
    worker.prepare()
    bundle = bundles.read(directory)
    with bundles.damaged_as_error(directory):
        checks = [_digests(directory, manifest), _gate(bundle, manifest), _filters(bundle, manifest)]
        if full:
            checks.append(_every_byte(directory))
        if load_check:
            checks.extend(_asked(directory, manifest))
    return Verification(directory, manifest.forgotten, tuple(checks))


def _digests(directory: Path, manifest: Manifest) -> Check:
    wrong = manifest.mismatches(directory)
    return Check("digests", not wrong, "; ".join(wrong) or "saved_model.pb and variables.index are as published")


def _gate(bundle: Bundle, manifest: Manifest) -> Check:
    """Walk the graph on disk, whatever the manifest says about it."""
    if not manifest.splices:
        return Check("leak gate", False, "the manifest names no filter")
    original = copy.deepcopy(bundle.proto)
    raw = bundles.Bundle(bundle.directory, original, bundle.sha256, True)
    try:
        unfiltered_graphs(raw, manifest)
        points = [_point(raw, done) for done in manifest.splices]
        leaks = [
            leak
            for graph, before in zip(bundle.graphs(), raw.graphs(), strict=True)
            for leak in LeakGate(
                graph, manifest.splices, score_family(before, points), manifest.allowed_outputs
            ).signature_leaks()
        ]
    except (IndexError, KeyError, AssertionError, MPRUError) as error:
        return Check("leak gate", False, f"the filter is not where the manifest says ({error})")
    if leaks:
        return Check("leak gate", False, str(refuse(leaks)))
    return Check("leak gate", True, "every output is reached only through the filter")


def _filters(bundle: Bundle, manifest: Manifest) -> Check:
    """Run the filters as they stand in the graph on class scores made up there, also when the model cannot be asked."""
    graphs, multi_label = bundle.graphs(), manifest.method == MASK
    try:
        cut_out = [(filter_alone(graphs[done.meta_graph], done), done) for done in manifest.splices]
        alone = [(definition.SerializeToString(), done) for definition, done in cut_out]
        wrong = worker.ask("filters", alone, manifest.forgotten, multi_label)
    except (IndexError, KeyError, ValueError, MPRUError) as error:
        return Check("filter", False, f"the filter is not where the manifest says ({error})")
    if isinstance(wrong, worker.Ended):
        return _ended("filter", wrong)
    if wrong:
        return Check("filter", False, str(wrong))
    rows = "what is retained is a probability" if multi_label else "rows sum to 1"
    return Check("filter", True, f"run alone, it leaves the forgotten classes nothing, and {rows}")


def _ended(name: str, ended: worker.Ended) -> Check:
    """What is known of a check in which the process ended: nothing, if it never began."""
    return Check(name, False if ended.step else None, str(ended))


def _point(raw: Bundle, done: Splice) -> SitePoint:
    tensor = raw.graphs()[done.meta_graph].scope(done.function).tensor(done.raw)
    assert tensor is not None
    return SitePoint(done.meta_graph, tensor, done.kind, done.classes, raw.graphs()[done.meta_graph].dtype(tensor) or 0)


def _every_byte(directory: Path) -> Check:
    import tensorflow as tf

    prefix = directory / "variables" / "variables"
    if not (directory / bundles.VARIABLES_INDEX).is_file():
        return Check("variables", None, "the model has no variables")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        for name in names:
            reader.get_tensor(name)  # compares the bytes with the CRC32C in the index
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        return Check("variables", False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Check("variables", True, f"{len(names)} tensors match their checksums")


def _asked(directory: Path, manifest: Manifest) -> list[Check]:
    try:
        graphs = unfiltered_graphs(bundles.read(directory), manifest)
    except ManifestError:  # the gate has said so; whoever took the filter out left the scores where they were
        graphs = bundles.read(directory).graphs()
    spliced = {(done.meta_graph, done.function, done.raw) for done in manifest.splices}
    sites = [site for site in survey(graphs, manifest.choice).sites if not spliced.isdisjoint(_refs(graphs, site))]
    if not sites:
        return [Check("answers", None, "the class scores were not found again, so no answer can be judged")]
    found = worker.ask("answers", directory.absolute(), sites[0], manifest.forgotten, manifest.method == MASK)
    if isinstance(found, worker.Ended):
        return [_ended("load", found)]
    return [Check(**values) for values in found]


def _refs(graphs: list[Graph], site: ScoreSite) -> set[tuple[int, str, str]]:
    """The site's tensors as a manifest names them."""
    places = ((point.meta_graph, point.tensor) for point in site.points)
    return {(index, tensor.scope, graphs[index].scope(tensor.scope).ref(tensor)) for index, tensor in places}


# ------------------------------------------------------------------------------------------------------- load check
def check_before_publishing(
    staged: Path,
    source: Path | None,
    site: ScoreSite,
    spec: FilterSpec,
    limits: Limits | None = None,
    replay: Replay | None = None,
) -> dict[str, Any]:
    """Load a staged version as a server would, ask it, and hold its answers against the NumPy reference.

    Args:
        staged: the complete version directory, not yet published.
        source: the unfiltered version it was made from, which is asked the same requests; None if there is none.
        site: the score site, for what each output holds.
        spec: the filter.
        limits: how long a step may take; default ``Limits()``.
        replay: what to do about warm-up requests, None for nothing.

    Returns:
        'status' ('passed' or 'skipped') and 'detail'; 'requests' and 'largest_difference' from the reference (in
        probability) where answers were compared; 'warmup', as :func:`mpru_tf.warmup_replay.warm_up` returns it, where
        requests were replayed.

    Raises:
        VerificationError: it answers wrongly, refuses a warm-up request, or does not load, crashes or hangs although
            the source does not.
        CorruptModelError: neither does the source load, or it crashes or hangs as well.
        UnsupportedModelError: what it answers are no class scores as the site describes them.
    """
    staged, source = staged.absolute(), source.absolute() if source is not None else None
    found = worker.ask("compare", staged, source, site, spec, replay, limits=limits)
    if not isinstance(found, worker.Ended):
        return dict(found)
    if found.about.startswith(SOURCE):
        raise source_is_broken("cannot be run, so neither could", str(found))
    if source is not None and found.step:
        again = worker.ask("try_source", source, site, limits=limits)
        if isinstance(again, worker.Ended):
            raise source_is_broken("cannot be run, so neither could", str(again))
    hint = "Set TF_CPP_MIN_LOG_LEVEL=0 to see what TensorFlow writes before that." if found.step else None
    if WARM_UP in found.about:
        hint = "Leave warm-up requests out with --warmup none, or give others with --warmup FILE."
    raise VerificationError(
        explain("The re-exported version cannot be checked; it was not published.", received=str(found), hint=hint)
    )
