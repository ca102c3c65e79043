"""Everything that mpru_tf refuses, as one tree.

::

    MPRUError                     catch this to catch them all
    ├── ModelError                about the SavedModel that was given
    │   ├── ModelNotFoundError    no such version directory or base path
    │   ├── CorruptModelError     it is there, but it is damaged or incomplete
    │   ├── UnsupportedModelError it has no class scores that a filter could stand behind
    │   └── AmbiguousSiteError    it has several, and only its owner can say which are meant
    ├── ForgetListError           about the classes to forget: unknown, doubled, none, all
    ├── LabelsError               about the label file or the labels found with a model
    ├── DataError                 about calibration data, or outputs given in its place
    ├── ClassMeansError           about class means: wrong length, missing rows, unreadable file
    │   └── PreconditionError     they are well formed, but the projection would not be trustworthy
    ├── LeakError                 an output would still answer a forgotten class
    ├── VerificationError         the new version does not do what it must; it was not published
    ├── ManifestError             a filtered version whose manifest is missing, foreign or does not match
    ├── PublishError              a version directory could not be written, claimed or moved
    ├── ServingError              a model server could not be started, reached, or brought to do what was asked
    └── MissingExtraError         an optional package is not installed (also an ImportError)

Each message is one paragraph that says what is wrong, what was received, what would be valid and what to do
next. Build it with :func:`explain`, so that every message has the same shape.
"""

from __future__ import annotations


class MPRUError(Exception):
    """Base class of every error that mpru_tf raises on purpose."""


class ModelError(MPRUError):
    """The given SavedModel cannot be worked on."""


class ModelNotFoundError(ModelError):
    """There is no SavedModel at the given path."""


class CorruptModelError(ModelError):
    """A SavedModel is there, but damaged or incomplete."""


class UnsupportedModelError(ModelError):
    """The SavedModel has no class scores that a filter could stand behind."""


class AmbiguousSiteError(ModelError):
    """The SavedModel has several candidates for the class scores."""


class ForgetListError(MPRUError):
    """The classes to forget are unknown, named twice, none, or all."""


class LabelsError(MPRUError):
    """The labels cannot be read, or do not fit the model."""


class DataError(MPRUError):
    """Calibration data, or outputs given in its place, cannot be used."""


class ClassMeansError(MPRUError):
    """Class means are malformed or do not fit the model."""


class PreconditionError(ClassMeansError):
    """Class means are well formed, but a projection along them would not be trustworthy."""


class LeakError(MPRUError):
    """At least one output would still answer a forgotten class.

    Attributes:
        paths: one tuple of tensor names per leak, from the signature's output back to the model's input.
    """

    def __init__(self, message: str, paths: tuple[tuple[str, ...], ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class VerificationError(MPRUError):
    """The re-exported version does not do what it must."""


class ManifestError(MPRUError):
    """A manifest is missing, unreadable or does not describe the files beside it."""


class PublishError(MPRUError):
    """A version directory could not be written, claimed or moved."""


class ServingError(MPRUError):
    """A model server could not be started, reached, or brought to do what was asked."""


class MissingExtraError(MPRUError, ImportError):
    """An optional package is needed for this and is not installed."""


def explain(problem: str, *, received: object = None, valid: object = None, hint: str | None = None) -> str:
    """Return one paragraph in the shape all messages share.

    Args:
        problem: what is wrong, a full sentence.
        received: what was given, shown as it is.
        valid: what would have been accepted.
        hint: what to do next, a full sentence.
    """
    parts = [problem.rstrip()]
    if received is not None:
        parts.append(f"Received: {received}.")
    if valid is not None:
        parts.append(f"Valid: {valid}.")
    if hint is not None:
        parts.append(hint.rstrip())
    # What is shown may come from a stranger's file: a name must not break the line or move the cursor.
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in " ".join(parts))
