"""ModelService over gRPC: GetModelStatus and HandleReloadConfigRequest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.status import RequestError, invalid_argument

logger = logging.getLogger(__name__)

#: Replaces the list of models by a ``ModelServerConfig``; is told how to find out whether the client still waits.
Reload = Callable[[Any, Callable[[], bool]], None]


def answer_get_model_status(manager: ServableManager, request: Any) -> Any:
    """Answer a ``GetModelStatusRequest`` with its response, or raise :class:`RequestError`.

    Every version that was ever managed is named, as the real server does: after a swap the old one stays, as END.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    name = request.model_spec.name
    statuses = manager.statuses(name)
    if request.model_spec.HasField("version"):
        version = request.model_spec.version.value
        if version not in statuses:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {name}")
        statuses = {version: statuses[version]}
    elif not statuses:
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, status in statuses.items():
        entry = response.model_version_status.add(version=version, state=int(status.state))
        entry.status.SetInParent()
        if status.error is not None:
            entry.status.error_code = status.error.code.value[0]
            entry.status.error_message = status.error.message
    return response


def answer_reload_config(reload: Reload, request: Any, is_active: Callable[[], bool]) -> Any:
    """Answer a ``ReloadConfigRequest`` with its response, or raise :class:`RequestError`.

    The answer comes when the models that are new in the list are available.
    """
    for index, entry in enumerate(request.config.model_config_list.config):
        logger.info("Config entry %d: name %s, path %s", index, entry.name, entry.base_path)
    try:
        reload(request.config, is_active)
    except RequestError as error:
        logger.error("ReloadConfig failed: %s", error)
        raise
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()
    return response
