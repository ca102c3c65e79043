"""Which version of which model a request asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpru_tf.serving.status import invalid_argument

if TYPE_CHECKING:
    from mpru_tf.serving.manager import ServableManager


def requested_version(manager: ServableManager, model_spec: Any) -> tuple[str, int | None]:
    """Return model name and version number (``None``: the latest) that a ``ModelSpec`` asks for.

    Raises:
        RequestError: INVALID_ARGUMENT, there is no name, or no such version label.
    """
    if not model_spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    choice = model_spec.WhichOneof("version_choice")
    if choice == "version_label":
        return model_spec.name, manager.version_of_label(model_spec.name, model_spec.version_label)
    return model_spec.name, model_spec.version.value if choice == "version" else None
