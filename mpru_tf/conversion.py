"""From a tree model's own file to a servable version, told in order: read, lower, write, check, publish.

With classes to forget, the model is written and checked out of the server's sight, the filter is put in there, and only
the filtered version ever gets a number.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpru_tf.errors import (
    DataError,
    LabelsError,
    MissingExtraError,
    MPRUError,
    PublishError,
    UnsupportedModelError,
    explain,
)
from mpru_tf.labels import parse_classes, read_labels, write_labels
from mpru_tf.lineage import check_nothing_comes_back
from mpru_tf.manifest import read_manifest
from mpru_tf.trees.backends import BACKENDS, make_backend
from mpru_tf.trees.forest import Forest
from mpru_tf.trees.self_check import compare
from mpru_tf.trees.self_check import oracle as oracle_of
from mpru_tf.trees.timing import fastest
from mpru_tf.trees.xgboost_model import read_xgboost
from mpru_tf.versions import publish, staged, target_base_path

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans
    from mpru_tf.reexport import ForgetResult

OPS, TFDF = BACKENDS
_WIDEST = 2**24  # features; a row of them takes 64 MiB
_LARGEST_REQUEST = 2**28  # values, 1 GiB
_MOST_TIMED = 256  # outputs
_IN_MEMORY = "an XGBoost model in memory"

Progress = Callable[[str], object]


@dataclass(frozen=True)
class ConversionResult:
    """What :func:`convert_xgboost` did.

    Attributes:
        version: the servable version that was written.
        path: its version directory.
        model: the file that was converted, or None where its bytes were given.
        origin: who wrote it ("XGBoost 3.2.0").
        classes: number n of classes.
        features: length of an input row.
        feature_names: one per feature, or none, as the model has them.
        feature_types: one per feature, or none, as the model has them ("float", "int", "c" for category codes, ...).
        trees: how many trees are used.
        nodes: how many nodes they have together.
        notes: sentences about what the reader of the model decided.
        signatures: keys of the signatures, sorted.
        labels: one per class, or None.
        backend: 'ops' or 'tfdf'.
        choice: why this one, in words.
        seconds_per_request: by backend, the median time of one request with ``batch_size`` rows, on one thread; None
            where nothing was timed.
        batch_size: rows per request for which the backend was chosen, or None.
        self_check: 'status' ('passed' or 'skipped') and 'detail'; where it passed, also 'compared_with' ('XGBoost
            3.2.0' or 'the reference'), 'rows' and 'largest_difference' in probability.
        forgotten: what was forgotten and how, or None where nothing was.
        bytes: size of all files of the version.
        seconds: time of the whole conversion, checks included.
    """

    version: int
    path: Path
    model: Path | None
    origin: str
    classes: int
    features: int
    feature_names: tuple[str, ...]
    feature_types: tuple[str, ...]
    trees: int
    nodes: int
    notes: tuple[str, ...]
    signatures: tuple[str, ...]
    labels: tuple[str, ...] | None
    backend: str
    choice: str
    seconds_per_request: dict[str, float] | None
    batch_size: int | None
    self_check: dict[str, Any]
    forgotten: ForgetResult | None
    bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
        values["forgotten"] = None if self.forgotten is None else self.forgotten.to_dict()
        return values


def convert_xgboost(
    model: str | os.PathLike[str] | bytes | bytearray,
    out: str | os.PathLike[str],
    *,
    backend: str | None = None,
    batch_size: int | None = None,
    named_inputs: bool = False,
    classify: bool = False,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    all_trees: bool = False,
    self_check: bool = True,
    forget: Sequence[str | SupportsIndex] | str | int = (),
    method: str | None = None,
    class_means: ClassMeans | str | os.PathLike[str] | None = None,
    calibration: Any = None,
    temperature: float | None = None,
    force: bool = False,
    redact_labels: bool = False,
    load_check: bool = True,
    progress: Progress | None = None,
) -> ConversionResult:
    """Publish an XGBoost classifier as the next version of a base path, with classes forgotten if any are named.

    The version answers ``features``, float32 ``[batch, n_features]``, with ``probabilities``, float32 ``[batch, n]``
    (``serving_default``). A missing value is NaN, a category its code. It needs no custom op with the backend 'ops'.
    XGBoost itself is not needed; where it is installed, the version is compared with it before it is published.

    Args:
        model: a file that ``Booster.save_model`` wrote (JSON or UBJSON), or its bytes.
        out: base path; made if missing.
        backend: 'ops' or 'tfdf'. Default: 'ops', unless a batch size is named.
        batch_size: rows per request to choose the backend for: both are built and timed, the faster one is published.
        named_inputs: also write the signature ``named``, with one input per feature.
        classify: also write the signature ``classify``, for serialized tf.Example.
        labels: one per class, or the path of a file with them.
        all_trees: use the trees after the best round of early stopping, too.
        self_check: compare what was written with XGBoost, or with the reference where XGBoost cannot be asked.
        forget: indices or labels of classes to forget; the unfiltered model is then not published at all.
        method, class_means, temperature, force, redact_labels, load_check: of :func:`mpru_tf.forget`.
        calibration: data to take class means from, as :meth:`ClassMeans.from_saved_model` takes it.
        progress: called with what is done next, in words.

    Returns:
        A :class:`ConversionResult`.

    Raises:
        ModelError: the model cannot be found, read or represented.
        LabelsError, ForgetListError: about ``labels`` or ``forget``; also if the newest version in ``out`` forgets a
            class that the new one would answer again.
        MissingExtraError: the backend 'tfdf' is named, and TensorFlow Decision Forests is not installed.
        VerificationError: what was written answers otherwise than it must. Nothing was published.
        PublishError: it could not be written.
        MPRUError: what :func:`mpru_tf.forget` raises, or options that contradict each other.
    """
    started = time.perf_counter()
    say: Progress = progress or (lambda step: None)
    forgets = isinstance(forget, str | SupportsIndex) or len(forget) > 0
    about_forgetting = {
        "method": method,
        "class means": class_means,
        "calibration data": calibration,
        "temperature": temperature,
        "force": force or None,
        "redact labels": redact_labels or None,
    }
    named = [name for name, value in about_forgetting.items() if value is not None]
    _check_options(backend, batch_size, forgets, named)
    base = target_base_path(out)
    say("reading the model")
    source = model if isinstance(model, bytes | bytearray) else Path(model).absolute()
    forest = read_xgboost(source, all_trees=all_trees)
    if forest.n_features > _WIDEST:
        raise _too_wide(forest)
    if batch_size is not None and batch_size * forest.n_features > _LARGEST_REQUEST:
        raise MPRUError(
            explain(
                "A request of this batch size does not fit into memory.",
                received=f"{batch_size} rows of {forest.n_features} features",
                valid=f"at most {_LARGEST_REQUEST // forest.n_features} rows",
            )
        )
    names = _labels(labels, forest)
    wanted: tuple[int, ...] = ()
    if forgets:
        specs = [forget] if isinstance(forget, str | SupportsIndex) else forget
        wanted = _wanted(specs, names, forest.classes)
        if load_check:
            from mpru_tf.worker import prepare

            prepare()  # it imports TensorFlow while this process does
    check_nothing_comes_back(base, wanted, "write into another base path", unlearned=())
    with staged(base) as staging, oracle_of(forest, source, all_trees, staging, self_check) as oracle:
        say("loading TensorFlow")
        import tensorflow  # noqa: F401

        say("writing")
        written = _written(
            *(backend, batch_size, forest.outputs),
            write=lambda name: _write(forest, name, staging / name, named_inputs, classify, names),
        )
        say("comparing")
        checks = compare(written.directories, oracle)
        if len(checks) > 1:
            say("timing both backends")
        chosen, seconds_per_request = fastest(sorted(checks), written.directories, forest, batch_size, staging)
        directory = written.directories[chosen]
        signatures = _signatures(directory)
        done: ForgetResult | None = None
        if forgets:
            say("forgetting")
            done = _forget(
                *(directory, staging / "filtered", forest, wanted, calibration),
                method=method,
                class_means=class_means,
                temperature=temperature,
                force=force,
                redact_labels=redact_labels,
                load_check=load_check,
            )
            directory = done.path
            _name_source(directory, source, names if redact_labels else None)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        version = publish(directory, base)
    path = base / str(version)
    file = source if isinstance(source, Path) else None
    return ConversionResult(
        version=version,
        path=path,
        model=file,
        origin=forest.origin,
        classes=forest.classes,
        features=forest.n_features,
        feature_names=forest.feature_names,
        feature_types=forest.feature_types,
        trees=len(forest.trees),
        nodes=forest.nodes,
        notes=forest.notes,
        signatures=signatures,
        labels=None if names is None else tuple(names),
        backend=chosen,
        choice=_choice(chosen, backend, batch_size, seconds_per_request, written.left_out),
        seconds_per_request=seconds_per_request,
        batch_size=batch_size,
        self_check=checks[chosen],
        forgotten=None if done is None else replace(done, version=version, path=path, source=file or Path(_IN_MEMORY)),
        bytes=size,
        seconds=time.perf_counter() - started,
    )


# -------------------------------------------------------------------------------------------------- what was asked for
def _check_options(backend: str | None, batch_size: int | None, forgets: bool, about_forgetting: list[str]) -> None:
    if backend not in (None, *BACKENDS):
        raise DataError(explain("There is no such backend.", received=repr(backend), valid=", ".join(BACKENDS)))
    if backend is not None and batch_size is not None:
        raise MPRUError(
            explain(
                "A batch size is named to have the faster backend chosen, but a backend is named as well.",
                received=f"backend {backend}, batch size {batch_size}",
                valid="one of the two",
            )
        )
    if batch_size is not None and batch_size < 1:
        raise MPRUError(explain("There is no such batch size.", received=batch_size, valid="1 or more"))
    if about_forgetting and not forgets:
        raise MPRUError(
            explain(
                "This says how classes are forgotten, but no class to forget is named.",
                received=", ".join(about_forgetting),
                hint="Name classes with --forget.",
            )
        )
    if {"class means", "calibration data"} <= set(about_forgetting):
        raise MPRUError(explain("Class means come from one place.", received="class means and calibration data"))


def _too_wide(forest: Forest) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            "The model has more features than a request can hold.",
            received=f"{forest.n_features} features",
            valid=f"at most {_WIDEST}, each request row being dense",
        )
    )


def _labels(labels: Sequence[str] | str | os.PathLike[str] | None, forest: Forest) -> list[str] | None:
    if labels is None:
        return None
    names = read_labels(os.fspath(labels)) if isinstance(labels, str | os.PathLike) else [str(name) for name in labels]
    if len(names) != forest.classes:
        raise LabelsError(
            explain(
                "The labels do not fit the model.",
                received=f"{len(names)} labels for {forest.classes} classes",
                valid=f"exactly {forest.classes} labels, in the order of the class indices",
            )
        )
    return names


def _wanted(specs: Sequence[str | SupportsIndex], names: Sequence[str] | None, classes: int) -> tuple[int, ...]:
    from mpru_tf.filters import check_forget_list

    return check_forget_list(classes, parse_classes(specs, names, classes))


# ------------------------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True)
class _Written:
    """The SavedModels of a forest, by backend, and why a backend has none."""

    directories: dict[str, Path]
    left_out: str | None


def _written(backend: str | None, batch_size: int | None, outputs: int, write: Callable[[str], Path]) -> _Written:
    """The backend that is named, or the default; both where they are to be timed."""
    if batch_size is None:
        chosen = backend or OPS
        return _Written({chosen: write(chosen)}, None)
    directories, left_out = {OPS: write(OPS)}, None
    if outputs > _MOST_TIMED:
        # A forest for each: writing and loading hundreds of them takes minutes.
        return _Written(directories, f"tfdf is not tried with more than {_MOST_TIMED} outputs; name it with --backend")
    try:
        directories[TFDF] = write(TFDF)
    except MissingExtraError:
        left_out = "TensorFlow Decision Forests is not installed"
    except UnsupportedModelError as error:
        left_out = f"tfdf cannot represent this model ({error})"
    return _Written(directories, left_out)


def _write(
    forest: Forest, backend: str, directory: Path, named_inputs: bool, classify: bool, labels: Sequence[str] | None
) -> Path:
    import tensorflow as tf

    from mpru_tf.trees import export

    computed = make_backend(forest, backend)
    directory.mkdir()
    try:
        export.write_saved_model(
            forest, directory, computed, named_inputs=named_inputs, classify=classify, labels=labels
        )
    except tf.errors.OpError as error:  # what the file system refuses TensorFlow
        raise PublishError(
            explain("The SavedModel could not be written.", received=error.message, hint="Nothing was published.")
        ) from error
    if labels is not None:
        write_labels(directory, labels)
    return directory


def _signatures(directory: Path) -> tuple[str, ...]:
    from mpru_tf.saved_model import bundle as bundles
    from mpru_tf.saved_model.graph import is_for_clients

    signatures = bundles.read(directory).meta_graphs[0].signature_def
    return tuple(sorted(name for name in signatures if is_for_clients(name, signatures[name])))


def _forget(
    directory: Path, into: Path, forest: Forest, wanted: Sequence[int], calibration: Any, **options: Any
) -> ForgetResult:
    """Make the filtered version, below a base path that no server looks at."""
    from mpru_tf import reexport
    from mpru_tf.class_means import ClassMeans

    if calibration is not None:
        options["class_means"] = ClassMeans.from_saved_model(directory, calibration)
    return reexport.forget(
        directory,
        [f"index:{index}" for index in wanted],
        into=into,
        multi_label=forest.link == "multi_label",
        copy=True,  # what it would share bytes with is about to go, and was never made durable
        **options,
    )


def _name_source(directory: Path, source: Path | bytes | bytearray, redacted: Sequence[str] | None) -> None:
    """Have the manifest say what the version was made from: the file, not the directory that only lay between."""
    manifest = read_manifest(directory)
    assert manifest is not None
    name = str(source) if isinstance(source, Path) else _IN_MEMORY
    if redacted is not None:
        from mpru_tf.redaction import Redaction

        labels = {index: redacted[index] for index in manifest.forgotten}
        name = Redaction(labels, [label for index, label in enumerate(redacted) if index not in labels]).text(name)
    replace(manifest, source={**copy.deepcopy(manifest.source), "path": name}).write(directory)


def _choice(
    chosen: str,
    backend: str | None,
    batch_size: int | None,
    seconds: Mapping[str, float] | None,
    left_out: str | None,
) -> str:
    if seconds is not None:
        other = next(name for name in seconds if name != chosen)
        ratio = seconds[other] / seconds[chosen]
        return (
            f"{chosen}: {ratio:.3g} times faster than {other} at batch size {batch_size} "
            f"({seconds[chosen] * 1e3:.3g} ms against {seconds[other] * 1e3:.3g} ms a request, one thread)"
        )
    if batch_size is not None:
        reason = left_out or "the other one did not pass the self-check"
        return f"only {chosen} was there to choose: {reason}"
    return f"{chosen}, as asked for" if backend is not None else f"{chosen}, the default"
