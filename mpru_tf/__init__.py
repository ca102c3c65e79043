"""Make a classifier that TensorFlow Serving serves forget classes, by writing its next version.

    >>> import mpru_tf
    >>> result = mpru_tf.forget("models/resnet", classes=["cat"])   # doctest: +SKIP
    >>> result.version, result.path                                 # doctest: +SKIP

Every public name is imported on first use: ``import mpru_tf`` itself loads neither TensorFlow nor Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpru_tf.class_means import ClassMeans, Preconditions
    from mpru_tf.conversion import ConversionResult, convert_xgboost
    from mpru_tf.errors import (
        AmbiguousSiteError,
        ClassMeansError,
        CorruptModelError,
        DataError,
        ForgetListError,
        LabelsError,
        LeakError,
        ManifestError,
        MissingExtraError,
        ModelError,
        ModelNotFoundError,
        MPRUError,
        PreconditionError,
        PublishError,
        ServingError,
        UnsupportedModelError,
        VerificationError,
    )
    from mpru_tf.filters import FilterSpec, make_filter
    from mpru_tf.inspection import Inspection, inspect
    from mpru_tf.layer import MPRULayer
    from mpru_tf.lineage import History, history
    from mpru_tf.reexport import ForgetResult, forget
    from mpru_tf.serving.server import ModelServer
    from mpru_tf.unlearning.config import UnsirConfig
    from mpru_tf.unlearning.unsir import UnsirResult, unsir
    from mpru_tf.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    # the main job
    "forget",
    "inspect",
    "verify",
    "history",
    "ForgetResult",
    "Inspection",
    "Verification",
    "History",
    # tree models
    "convert_xgboost",
    "ConversionResult",
    # the filter, for people who still hold the Keras model
    "MPRULayer",
    "FilterSpec",
    "make_filter",
    # unlearning in the weights, for people who hand out the file
    "unsir",
    "UnsirConfig",
    "UnsirResult",
    # class means
    "ClassMeans",
    "Preconditions",
    # the embedded model server
    "ModelServer",
    # everything that is refused
    "MPRUError",
    "ModelError",
    "ModelNotFoundError",
    "CorruptModelError",
    "UnsupportedModelError",
    "AmbiguousSiteError",
    "ForgetListError",
    "LabelsError",
    "DataError",
    "ClassMeansError",
    "PreconditionError",
    "LeakError",
    "VerificationError",
    "ManifestError",
    "PublishError",
    "ServingError",
    "MissingExtraError",
    "__version__",
]

# The module that each public name is defined in. No name may also be the name of a module of this package: importing
# that module would put the module in the name's place.
_HOMES = {
    "ClassMeans": "mpru_tf.class_means",
    "Preconditions": "mpru_tf.class_means",
    "ConversionResult": "mpru_tf.conversion",
    "convert_xgboost": "mpru_tf.conversion",
    "FilterSpec": "mpru_tf.filters",
    "make_filter": "mpru_tf.filters",
    "MPRULayer": "mpru_tf.layer",
    "ForgetResult": "mpru_tf.reexport",
    "forget": "mpru_tf.reexport",
    "Inspection": "mpru_tf.inspection",
    "inspect": "mpru_tf.inspection",
    "History": "mpru_tf.lineage",
    "history": "mpru_tf.lineage",
    "ModelServer": "mpru_tf.serving.server",
    "UnsirConfig": "mpru_tf.unlearning.config",
    "UnsirResult": "mpru_tf.unlearning.unsir",
    "unsir": "mpru_tf.unlearning.unsir",
    "Verification": "mpru_tf.verification",
    "verify": "mpru_tf.verification",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "mpru_tf.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
