"""XGBoost's own model files, JSON and UBJSON, read into a :class:`~mpru_tf.trees.forest.Forest` without XGBoost.

Tried with files of XGBoost 1.7, 2.0, 2.1 and 3.0 to 3.4. Only what ``save_model`` and ``save_raw`` write is read: a
text dump has lost digits, and a pickle would have to be run. What differs between the versions:

============================ ==================================================================================
what                         where
============================ ==================================================================================
``base_score``               one number up to 3.0, from 3.1 on a vector in the text ``"[a,b,c]"``. Always what a user
                             would have passed: a probability for ``binary:logistic`` (so its logit is added), a
                             margin for ``multi:*`` and ``binary:hinge``; ``binary:logitraw``, see :data:`_OBJECTIVES`
dart's tree weights          ``gradient_booster.weight_drop`` up to 3.3, ``gradient_booster.model.weight_drop`` in 3.4;
                             the trees in ``gradient_booster.gbtree.model`` up to 3.2
vector leaves                ``base_weights`` ``[nodes * outputs]`` up to 3.1; from 3.2 on ``leaf_weights``
                             ``[leaves * outputs]``, where ``right_children`` of a leaf says which
rounds                       ``iteration_indptr`` from 2.0 on, before that counted by ``num_parallel_tree``
names of categories          ``gradient_booster.model.cats`` from 3.1 on; inputs are codes all the same
============================ ==================================================================================

A model that stopped early is cut off after its best round, as XGBoost's scikit-learn classifier does when it
predicts (``Booster.predict`` does not).
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError, explain
from mpru_tf.trees.forest import CATEGORY_LIMIT, VECTOR, Floats, Forest, Tree

_OBJECTIVES = {
    # name: (link, whether base_score is a probability)
    "multi:softprob": ("softmax", False),
    "multi:softmax": ("softmax", False),
    "binary:logistic": ("sigmoid", True),
    "binary:logitraw": ("sigmoid", False),
    "binary:hinge": ("step", False),
}
"""What can be read. The same in every version; ``binary:logitraw`` never takes the logit of its base score."""
_NEWEST = (3, 4)
_LEAST_BASE = np.float32(1e-6)
_LARGEST_FILE = 2**31 - 1  # what it becomes is a SavedModel, which cannot be larger
_MOST_OUTPUTS = 2**20  # bounds what a single hostile number can make us allocate
_SAVE = "Save it with Booster.save_model('model.json') or 'model.ubj' and convert that file."
_FOREIGN = (
    # what a file begins with, what it then is, what to do
    (b"binf", "XGBoost's old binary format", _SAVE),
    (b"bs64", "XGBoost's old binary format", _SAVE),
    (b"\x80", "a Python pickle, which would have to be run to be read", f"Load it where it was made. {_SAVE}"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it first."),
    (b"PK\x03\x04", "a zip archive", "Unpack it first."),
    (b"tree\n", "a LightGBM model", "Only XGBoost models can be read."),
    (b"CBM1", "a CatBoost model", "Only XGBoost models can be read."),
    (b"booster[", "a text dump of an XGBoost model, which has lost digits", _SAVE),
)
_FOREIGN_KEYS = (
    ("oblivious_trees", "a CatBoost model"),
    ("num_tree_per_iteration", "a dump of a LightGBM model"),
    ("nodeid", "a dump of an XGBoost model, which has lost digits"),
    ("Config", "a snapshot of an XGBoost session"),
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"-?\d{1,18}")

Json = dict[str, Any]


def read_xgboost(source: str | Path | bytes | bytearray, *, all_trees: bool = False) -> Forest:
    """Read a classifier that XGBoost saved as JSON or UBJSON.

    Args:
        source: the path of the file, or its bytes (``Booster.save_raw()``). Which of the two formats it is, is seen
            in the bytes, not in the name.
        all_trees: use the trees after the best round of early stopping, too.

    Returns:
        The forest; dart weights and what a base score means are folded in.

    Raises:
        ModelNotFoundError: there is no such file, or it cannot be read.
        CorruptModelError: it is damaged.
        UnsupportedModelError: it is not an XGBoost model, or one that is no classifier of the kinds above.
    """
    data = bytes(source) if isinstance(source, (bytes, bytearray)) else _bytes_of(Path(source))
    try:
        return _forest(_document(data), all_trees)
    except RecursionError as error:
        raise _damaged("it is nested too deeply") from error


# --------------------------------------------------------------------------------------------------------- the model
def _forest(document: Json, all_trees: bool) -> Forest:
    learner = _object(document, "learner", "the file")
    booster = _object(learner, "gradient_booster", "learner")
    kind = booster.get("name")
    if kind == "gblinear":
        raise UnsupportedModelError(
            explain(
                "The XGBoost model is linear and has no trees.",
                received="booster gblinear",
                valid="gbtree, dart",
                hint="A linear model is a matrix product: export that with TensorFlow directly.",
            )
        )
    if kind not in ("gbtree", "dart"):
        raise UnsupportedModelError(
            explain("The booster of the XGBoost model is not known.", received=_shown(kind), valid="gbtree, dart")
        )
    version = document.get("version")
    version = [part for part in version if isinstance(part, int)] if isinstance(version, list) else []
    link, margins = _outputs(learner, version)
    outputs = len(margins)
    nested = _object(booster, "gbtree", "gradient_booster") if "gbtree" in booster else booster
    model = _object(nested, "model", "gradient_booster")
    parameters = _object(learner, "learner_model_param", "learner")
    n_features = _whole(parameters, "num_feature", "learner_model_param")
    if not 0 < n_features < 2**31:
        raise _damaged(f"num_feature is {n_features}")
    stored = _list(model, "trees", "gradient_booster.model")
    groups = _integers(model, "tree_info", "gradient_booster.model")
    if len(groups) != len(stored):
        raise _damaged(f"tree_info has {len(groups)} entries for {len(stored)} trees")
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < outputs:
        raise _damaged(f"tree_info names an output that is not one of {outputs}")
    weights = _weights(booster, model, len(stored))
    used, notes = _rounds_used(learner, model, len(stored), outputs, all_trees)
    trees = tuple(_tree(tree, index, outputs, weights) for index, tree in enumerate(stored[:used]))
    if tuple(version[:2]) > _NEWEST:
        notes.append("The file is of a newer XGBoost than any that was tried: compare the probabilities with its own.")
    if _name_of_objective(learner) in ("multi:softmax", "binary:logitraw"):
        notes.append(f"XGBoost answers no probabilities for {_name_of_objective(learner)}; the converted model does.")
    return Forest(
        trees=trees,
        groups=np.array(
            [VECTOR if tree.width > 1 else group for tree, group in zip(trees, groups[:used].tolist(), strict=True)],
            np.int32,
        ),
        base_margin=margins,
        n_features=n_features,
        link=link,
        feature_names=_texts(learner, "feature_names"),
        feature_types=_texts(learner, "feature_types"),
        category_names=_category_names(model, n_features),
        origin=" ".join(["XGBoost", ".".join(map(str, version))]).strip(),
        notes=tuple(notes),
    )


def _name_of_objective(learner: Json) -> str:
    name = _object(learner, "objective", "learner").get("name")
    if not isinstance(name, str):
        raise _damaged("learner.objective has no name")
    return name


def _outputs(learner: Json, version: list[int]) -> tuple[str, Floats]:
    """The link and the base margins of a model."""
    name = _name_of_objective(learner)
    if name not in _OBJECTIVES:
        raise UnsupportedModelError(
            explain(
                "The XGBoost model is no classifier.",
                received=f"objective {_shown(name)}",
                valid=", ".join(_OBJECTIVES),
                hint="Models for regression, ranking and survival have no classes that could be forgotten. One trained "
                "with a loss of one's own is saved as reg:squarederror: name the objective when training.",
            )
        )
    link, is_probability = _OBJECTIVES[name]
    parameters = _object(learner, "learner_model_param", "learner")
    classes = _whole(parameters, "num_class", "learner_model_param")
    targets = _whole(parameters, "num_target", "learner_model_param") if "num_target" in parameters else 1
    outputs = classes if link == "softmax" else targets
    if not (2 if link == "softmax" else 1) <= outputs <= _MOST_OUTPUTS or (link == "softmax" and targets > 1):
        raise UnsupportedModelError(
            explain(
                "The XGBoost model does not have the outputs of a classifier.",
                received=f"{name} with num_class {classes} and num_target {targets}",
                valid="two classes or more, and one target; or binary:logistic with several targets",
            )
        )
    if outputs > 1 and link != "softmax":
        if link != "sigmoid":
            raise UnsupportedModelError(
                explain("Several labels with this objective cannot be read.", received=name, valid="binary:logistic")
            )
        link = "multi_label"
    scores = _base_scores(parameters.get("base_score"))
    if len(scores) not in (1, outputs):
        raise _damaged(f"base_score has {len(scores)} entries for {outputs} outputs")
    if is_probability:
        if version[:2] >= [3, 2]:
            # From 3.2 on XGBoost clips it: it finds 0 or 1 itself where all rows are of one class.
            scores = np.clip(scores, _LEAST_BASE, np.float32(1) - _LEAST_BASE)
        if not ((scores > 0) & (scores < 1)).all():
            raise _damaged(f"the base_score of {name} is not between 0 and 1: {scores.tolist()}")
        # In float32, as XGBoost does it.
        scores = -np.log(np.float32(1) / scores - np.float32(1))
    return link, np.broadcast_to(scores, (outputs,)).astype(np.float32)


def _base_scores(value: object) -> Floats:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _damaged("learner_model_param has no base_score")
    inside = value.strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1]
    parts = [part.strip() for part in inside.split(",")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise _damaged(f"base_score is {_shown(value)}")
    scores = _to_float32(np.array([float(part) for part in parts]))
    if not np.isfinite(scores).all():
        raise _damaged(f"base_score is {_shown(value)}")
    return scores


def _weights(booster: Json, model: Json, trees: int) -> Floats | None:
    """The weight of each tree of a dart model; None where there are none."""
    holder = next((part for part in (booster, model) if "weight_drop" in part), None)
    if holder is None:
        if booster.get("name") == "dart":
            raise _damaged("a dart model without weight_drop")
        return None
    weights = _reals(holder, "weight_drop", "gradient_booster")
    if len(weights) == 0 and booster.get("name") != "dart":
        return None
    if len(weights) != trees or not np.isfinite(weights).all():
        raise _damaged(f"weight_drop does not hold one finite number for each of {trees} trees")
    return weights


def _rounds_used(learner: Json, model: Json, trees: int, outputs: int, all_trees: bool) -> tuple[int, list[str]]:
    """How many trees, from the first, the classifier uses; and what to tell about it."""
    starts = _round_starts(model, trees, outputs)
    attributes = learner.get("attributes")
    best = attributes.get("best_iteration") if isinstance(attributes, dict) else None
    if best is None:
        return trees, []
    if not (isinstance(best, str) and _WHOLE.fullmatch(best)):
        raise _damaged(f"the attribute best_iteration is {_shown(best)}")
    wanted, rounds = int(best) + 1, len(starts) - 1
    if not 0 < wanted < rounds:  # XGBoost 1.7 counts without early stopping, too; it says -1 after no rounds
        return trees, []
    if all_trees:
        return trees, [f"All {rounds} rounds are used, although training found round {wanted} to be the best."]
    return int(starts[wanted]), [
        f"The first {wanted} of {rounds} rounds are used: training stopped early and found round {wanted} to be the "
        "best. XGBoost's scikit-learn classifier does the same; Booster.predict uses all rounds."
    ]


def _round_starts(model: Json, trees: int, outputs: int) -> npt.NDArray[np.int64]:
    """``[rounds + 1]``: the first tree of each round, and the number of trees."""
    if "iteration_indptr" in model:
        starts = _integers(model, "iteration_indptr", "gradient_booster.model")
        if not len(starts) or starts[0] != 0 or starts[-1] != trees or bool((np.diff(starts) < 0).any()):
            raise _damaged(f"iteration_indptr does not divide {trees} trees into rounds")
        return starts
    where = "gbtree_model_param"
    parallel = _whole(_object(model, where, "gradient_booster.model"), "num_parallel_tree", where)
    a_round = max(parallel, 1) * outputs
    if trees % a_round:
        raise _damaged(f"{trees} trees are no whole number of rounds of {a_round}")
    return np.arange(0, trees + 1, a_round)


# ---------------------------------------------------------------------------------------------------------- one tree
def _tree(stored: object, index: int, outputs: int, weights: Floats | None) -> Tree:
    where = f"tree {index}"
    if not isinstance(stored, dict):
        raise _damaged(f"{where} is no object")
    left = _integers(stored, "left_children", where)
    nodes = len(left)
    right = _integers(stored, "right_children", where, nodes)
    threshold = _reals(stored, "split_conditions", where, nodes)
    inner = left >= 0
    parameters = stored.get("tree_param")
    parameters = parameters if isinstance(parameters, dict) else {}
    width = _whole(parameters, "size_leaf_vector", where) if "size_leaf_vector" in parameters else 1
    if width > 1:
        if width != outputs:
            raise _damaged(f"the leaves of {where} hold {width} numbers for {outputs} outputs")
        values = _vector_leaves(stored, where, inner, right, width)
    else:
        values = threshold[:, None]
    if weights is not None:
        # XGBoost multiplies in float32 when it predicts. A leaf that is too large is found by the check of the tree.
        with np.errstate(over="ignore", invalid="ignore"):
            values = values * weights[index]
    try:
        tree = Tree.arrange(
            left=left,
            right=right,
            feature=_integers(stored, "split_indices", where, nodes),
            threshold=threshold,
            default_left=_integers(stored, "default_left", where, nodes),
            values=values,
            categories=_categories(stored, where, nodes),
        )
    except CorruptModelError as error:
        raise _damaged(f"{where}: {error}") from error
    if "num_deleted" in parameters and tree.nodes + _whole(parameters, "num_deleted", where) != nodes:
        raise _damaged(f"{where} reaches {tree.nodes} of its {nodes} nodes, and not all others were deleted")
    return tree


def _vector_leaves(
    stored: Json, where: str, inner: npt.NDArray[np.bool_], right: npt.NDArray[np.int64], width: int
) -> Floats:
    """``[nodes, width]``, zeros at inner nodes."""
    nodes = len(inner)
    if "leaf_weights" not in stored:
        return _reals(stored, "base_weights", where, nodes * width).reshape(nodes, width)
    weights = _reals(stored, "leaf_weights", where)
    if len(weights) % width:
        raise _damaged(f"leaf_weights of {where} are no whole number of leaves")
    rows = weights.reshape(-1, width)
    chosen = np.where(inner, 0, right)
    if not len(rows) or bool((chosen < 0).any()) or bool((chosen >= len(rows)).any()):
        raise _damaged(f"a leaf of {where} is not among its leaf_weights")
    values: Floats = rows[chosen]
    return values


def _categories(stored: Json, where: str, nodes: int) -> dict[int, npt.NDArray[np.int64]]:
    """The codes that go right, by categorical node."""
    if "split_type" not in stored:  # before XGBoost 1.3
        return {}
    kinds = _integers(stored, "split_type", where, nodes)
    if not kinds.any():
        return {}
    if bool((kinds > 1).any()) or bool((kinds < 0).any()):
        raise _damaged(f"split_type of {where} is neither 0 nor 1")
    listed = _integers(stored, "categories_nodes", where)
    starts = _integers(stored, "categories_segments", where, len(listed))
    sizes = _integers(stored, "categories_sizes", where, len(listed))
    codes = _integers(stored, "categories", where)
    # One run after the other, as XGBoost writes them; overlapping ones could ask for more memory than the file has.
    ends = np.cumsum(sizes)
    if not (
        bool((sizes >= 0).all())
        and bool((sizes <= len(codes)).all())
        and np.array_equal(starts, ends - sizes)
        and (int(ends[-1]) if len(ends) else 0) == len(codes)
    ):
        raise _damaged(f"the categories of {where} are not one run for each of its categorical nodes")
    if not np.array_equal(listed, np.flatnonzero(kinds)):
        raise _damaged(f"categories_nodes of {where} are not its categorical nodes")
    if bool((codes < 0).any()) or bool((codes >= CATEGORY_LIMIT).any()):
        raise _damaged(f"a category code of {where} is below 0 or above {CATEGORY_LIMIT - 1}")
    runs = zip(listed.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return {node: codes[start:end] for node, start, end in runs}


# ------------------------------------------------------------------------------------------------------------- names
def _texts(learner: Json, key: str) -> tuple[str, ...]:
    found = learner.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise _damaged(f"learner.{key} is no list of texts")
    try:
        "".join(found).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a character
        raise _damaged(f"learner.{key} is not Unicode") from error
    return tuple(found)


def _category_names(model: Json, n_features: int) -> tuple[tuple[str, ...] | None, ...]:
    """The names of each feature's category codes, in the order of the codes; empty where the model has none.

    Text is stored as the bytes of all names and where each begins, numbers as they are.
    """
    cats = model.get("cats")
    if not isinstance(cats, dict) or not (encoded := _list(cats, "enc", "cats")):
        return ()
    if len(encoded) != n_features:
        raise _damaged(f"cats names the categories of {len(encoded)} features; there are {n_features}")
    names: list[tuple[str, ...] | None] = []
    for index, entry in enumerate(encoded):
        where = f"the category names of feature {index}"
        if not isinstance(entry, dict):
            raise _damaged(f"{where} are no object")
        if "offsets" not in entry:
            values = entry.get("values")
            if not isinstance(values, (list, np.ndarray)):
                raise _damaged(f"{where} have no values")
            listed = values.tolist() if isinstance(values, np.ndarray) else values
            if not all(isinstance(value, (int, float)) for value in listed):
                raise _damaged(f"{where} are neither text nor numbers")
            names.append(tuple(map(str, listed)) or None)
            continue
        offsets = _integers(entry, "offsets", where)
        letters = _integers(entry, "values", where)
        if not len(offsets):
            names.append(None)
            continue
        if bool((np.diff(offsets) < 0).any()) or offsets[0] != 0 or offsets[-1] != len(letters):
            raise _damaged(f"{where} do not begin where it says they do")
        text = (letters & 0xFF).astype(np.uint8).tobytes()
        bounds = offsets.tolist()
        try:
            names.append(tuple(text[a:b].decode("utf-8") for a, b in pairwise(bounds)) or None)
        except UnicodeDecodeError as error:
            raise _damaged(f"{where} are not UTF-8") from error
    return tuple(names)


# ------------------------------------------------------------------------------------------- from bytes to a document
def _bytes_of(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise UnsupportedModelError(
                explain("The file is too large to become a SavedModel.", received=f"{path}, {size} bytes")
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(
            explain(
                "The XGBoost model cannot be read.",
                received=f"{path} ({error.strerror})",
                valid="a file that Booster.save_model wrote, .json or .ubj",
            )
        ) from error
    except ValueError as error:  # a path with a NUL
        raise ModelNotFoundError(explain("There can be no such file.", received=_shown(str(path)))) from error


def _document(data: bytes) -> Json:
    """The file as objects, lists, texts and numbers; lists of numbers may be NumPy arrays."""
    head = data.lstrip(b" \t\r\n")
    for start, what, hint in _FOREIGN:
        if data.startswith(start):
            raise UnsupportedModelError(explain("The file is not a model to be read.", received=what, hint=hint))
    if not head:
        raise _damaged("it is empty")
    if head[:1] not in (b"{", b"["):
        raise UnsupportedModelError(
            explain(
                "The file is no XGBoost model in JSON or UBJSON.",
                received=f"it begins with {head[:16]!r}",
                hint=f"XGBoost's old binary format (.model, .bin, .deprecated) cannot be told from noise. {_SAVE}",
            )
        )
    found = _Ubjson(data).document() if data[:1] == b"{" and data[1:2] in _LENGTH_MARKERS else _json(data)
    if isinstance(found, dict) and "learner" in found:
        learner = found["learner"]
        booster = learner.get("gradient_booster") if isinstance(learner, dict) else None
        holder = booster.get("gbtree", booster) if isinstance(booster, dict) else None
        if isinstance(holder, dict) and "model" in holder:
            return found
        raise UnsupportedModelError(
            explain(
                "The file holds the settings of an XGBoost model, but no trees.",
                received="what Booster.save_config writes, or a part of a model",
                hint=_SAVE,
            )
        )
    first = found[0] if isinstance(found, list) and found else found
    keys = first if isinstance(first, dict) else {}
    what = next((what for key, what in _FOREIGN_KEYS if key in keys), "JSON of something else")
    raise UnsupportedModelError(explain("The file is no saved XGBoost model.", received=what, hint=_SAVE))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _damaged(f"it is not UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise _damaged(f"it is not JSON ({error})") from error


_LENGTHS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8"}
_TYPES = {**_LENGTHS, "d": ">f4", "D": ">f8"}
_LENGTH_MARKERS = tuple(marker.encode() for marker in _LENGTHS)
_DEEPEST = 32


class _Ubjson:
    """A strict reader of UBJSON (ubjson.org, draft 12), as much of it as XGBoost writes.

    Numbers are big-endian. An array of one type, ``[$d#L`` and so on, becomes a NumPy array. No length is believed
    before it is compared with the bytes that are left.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def document(self) -> Any:
        value = self._value(self._marker(), 0)
        if self._at != len(self._data):
            raise self._wrong("more bytes follow the end")
        return value

    def _value(self, marker: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self._wrong("it is nested too deeply")
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._array(depth)
        if marker == "S":
            return self._text()
        if marker in _TYPES:
            return self._array_of(marker, 1)[0].item()
        if marker in "TFZ":
            return {"T": True, "F": False, "Z": None}[marker]
        raise self._wrong(f"no value begins with {marker!r}")

    def _object(self, depth: int) -> Json:
        found: Json = {}
        while self._peek() != "}":
            key = self._text()
            found[key] = self._value(self._marker(), depth + 1)
        self._at += 1
        return found

    def _array(self, depth: int) -> Any:
        kind = None
        if self._peek() == "$":
            self._at += 1
            kind = self._marker()
            if kind not in _TYPES or self._peek() != "#":
                raise self._wrong("an array of one type has no length, or not a type of numbers")
        if self._peek() == "#":
            self._at += 1
            # Each value takes at least one byte.
            count = self._length(np.dtype(_TYPES[kind]).itemsize if kind else 1)
            if kind:
                return self._array_of(kind, count)
            return [self._value(self._marker(), depth + 1) for _ in range(count)]
        values = []
        while self._peek() != "]":
            values.append(self._value(self._marker(), depth + 1))
        self._at += 1
        return values

    def _array_of(self, kind: str, count: int) -> npt.NDArray[Any]:
        dtype = np.dtype(_TYPES[kind])
        raw = self._take(count * dtype.itemsize)
        return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))

    def _text(self) -> str:
        raw = self._take(self._length(1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong("a text is not UTF-8") from error

    def _length(self, size: int) -> int:
        """A length that the bytes left can hold, if each item takes ``size``."""
        marker = self._marker()
        if marker not in _LENGTHS:
            raise self._wrong(f"no length begins with {marker!r}")
        length = int(self._array_of(marker, 1)[0])
        if not 0 <= length <= (len(self._data) - self._at) // size:
            raise self._wrong(f"a length is {length}")
        return length

    def _take(self, size: int) -> bytes:
        raw = self._data[self._at : self._at + size]
        if len(raw) != size:
            raise self._wrong("it ends too early")
        self._at += size
        return raw

    def _marker(self) -> str:
        return self._take(1).decode("latin-1")

    def _peek(self) -> str:
        marker = self._marker()
        self._at -= 1
        return marker

    def _wrong(self, reason: str) -> CorruptModelError:
        return _damaged(f"it is no UBJSON at byte {self._at}: {reason}")


# --------------------------------------------------------------------------------------------- members, checked
def _object(holder: Json, key: str, where: str) -> Json:
    found = holder.get(key)
    if not isinstance(found, dict):
        raise _damaged(f"{where} has no object {key}")
    return found


def _list(holder: Json, key: str, where: str) -> list[Any]:
    found = holder.get(key)
    if not isinstance(found, list):
        raise _damaged(f"{where} has no list {key}")
    return found


def _whole(holder: Json, key: str, where: str) -> int:
    """An integer parameter. XGBoost writes them as text."""
    found = holder.get(key)
    if isinstance(found, str) and _WHOLE.fullmatch(found):
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**62:
        return found
    raise _damaged(f"{key} of {where} is {_shown(found)}")


def _integers(holder: Json, key: str, where: str, length: int | None = None) -> npt.NDArray[np.int64]:
    array = _numbers(holder, key, where, length)
    if array.dtype.kind not in "iub" or (array.dtype == np.uint64 and bool((array >= 2**63).any())):
        raise _damaged(f"{key} of {where} holds something that is no integer")
    return array.astype(np.int64)


def _reals(holder: Json, key: str, where: str, length: int | None = None) -> Floats:
    array = _numbers(holder, key, where, length)
    if array.dtype.kind not in "iuf":
        raise _damaged(f"{key} of {where} holds something that is no number")
    return _to_float32(array)


def _numbers(holder: Json, key: str, where: str, length: int | None) -> npt.NDArray[Any]:
    found = holder.get(key)
    if not isinstance(found, (list, np.ndarray)):
        raise _damaged(f"{where} has no array {key}")
    try:
        array = np.array(found) if len(found) else np.zeros(0, np.int64)
    except (ValueError, OverflowError) as error:
        raise _damaged(f"{key} of {where} holds something that is no number") from error
    if array.ndim != 1:
        raise _damaged(f"{key} of {where} is no flat array")
    if length is not None and len(array) != length:
        raise _damaged(f"{key} of {where} has {len(array)} entries instead of {length}")
    return array


def _to_float32(array: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _damaged(reason: str) -> CorruptModelError:
    return CorruptModelError(explain("The XGBoost model is damaged.", received=reason))
