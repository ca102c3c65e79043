"""Several models, their configuration file, its reload, version policies and labels, as a client sees them."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError
from mpru_tf.serving.config import read_text_proto, served_models
from mpru_tf.serving.server import ModelServer
from mpru_tf.serving.status import RequestError

Code = grpc.StatusCode
X = np.array([[1, 2, 3]], np.float32)


def entry(name: str, base: Path, more: str = "") -> str:
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} }}'


def listing(*entries: str) -> str:
    return f"model_config_list {{ {' '.join(entries)} }}"


def replace_file(path: Path, text: str) -> None:
    """Write a file as an editor or a mounted ConfigMap does: at once."""
    staged = path.with_suffix(".staged")
    staged.write_text(text)
    os.replace(staged, path)


@pytest.fixture
def bases(tmp_path: Path, saved: Callable[[int], Path]) -> Callable[..., Path]:
    """Return a function that makes a base path with some versions."""

    def make(name: str, *versions: int) -> Path:
        base = tmp_path / name
        base.mkdir(exist_ok=True)
        for version in versions:
            staged = tmp_path / f"staged-{name}-{version}"
            shutil.copytree(saved(version), staged)
            staged.rename(base / str(version))
        return base

    return make


class Served:
    """A server of a configuration file, and a client that says which model it means."""

    def __init__(self, server: ModelServer, client: Any, file: Path) -> None:
        self.server, self.client, self.file = server, client, file

    def answer(self, name: str, version: int | None = None, label: str | None = None) -> int:
        """Return the version that answered."""
        request = self.client.request(version=version, x=X)
        request.model_spec.name = name
        if label is not None:
            request.model_spec.version_label = label
        spec, outputs = self.client.predict(request)
        assert outputs["version"].tolist() == [spec.version.value]
        return int(spec.version.value)

    def refusal(self, name: str, version: int | None = None, label: str | None = None) -> tuple[Code, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.answer(name, version, label)
        return refused.value.code(), refused.value.details()

    def rest(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.server.rest_api_port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as got:
                return got.status, json.load(got)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def reload(self, text: str, timeout: float = 30) -> Any:
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(text, request.config)
        return self.client.models.HandleReloadConfigRequest(request, timeout=timeout)

    def reload_refusal(self, text: str, timeout: float = 30) -> tuple[Code, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.reload(text, timeout)
        return refused.value.code(), refused.value.details()

    def states(self, name: str) -> dict[int, str]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        response = self.client.models.GetModelStatus(request, timeout=30)
        names = get_model_status_pb2.ModelVersionStatus.State
        return {status.version: names.Name(status.state) for status in response.model_version_status}

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def serving(tmp_path: Path, running: Callable[..., Any]) -> Callable[..., Any]:
    """Return a context manager that serves a list of models."""

    @contextmanager
    def serve(text: str, **options: Any) -> Iterator[Served]:
        file = tmp_path / "models.config"
        file.write_text(text)
        with running(model_config_file=str(file), **options) as (server, client):
            yield Served(server, client, file)

    return serve


def test_several_models_with_their_policies(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    text = listing(
        entry("one", bases("a", 1, 2)),
        entry("two", bases("b", 1, 2, 3), "model_version_policy { latest { num_versions: 2 } }"),
        entry("every", bases("c", 1, 3), "model_version_policy { all {} }"),
        entry("some", bases("d", 1, 2, 3), "model_version_policy { specific { versions: 1 versions: 3 versions: 9 } }"),
    )
    with serving(text) as served:
        assert served.server.model_names == ("one", "two", "every", "some")
        assert served.states("one") == {2: "AVAILABLE"}
        served.until(lambda: served.states("two") == {2: "AVAILABLE", 3: "AVAILABLE"})
        served.until(lambda: served.states("every") == {1: "AVAILABLE", 3: "AVAILABLE"})
        served.until(lambda: served.states("some") == {1: "AVAILABLE", 3: "AVAILABLE"})
        assert [served.answer(name) for name in served.server.model_names] == [2, 3, 3, 3]
        assert served.answer("some", 1) == 1
        assert served.refusal("some", 2) == (Code.NOT_FOUND, "Servable not found for request: Specific(some, 2)")
        assert served.refusal("scaler")[0] is Code.NOT_FOUND


def test_reload_replaces_the_whole_list(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    a, b = bases("a", 1), bases("b", 2)
    with serving(listing(entry("old", a), entry("stays", a))) as served:
        response = served.reload(listing(entry("stays", a), entry("new", b)))
        assert response.HasField("status")
        assert response.status.error_code == 0
        assert served.answer("new") == 2  # the answer came when it was available
        assert served.answer("stays") == 1
        served.until(lambda: served.states("old") == {1: "END"})
        assert served.refusal("old") == (Code.NOT_FOUND, "Servable not found for request: Latest(old)")
        # A model comes back after it was unloaded, and a base path moves.
        served.reload(listing(entry("old", a), entry("stays", b)))
        assert served.answer("old") == 1
        served.until(lambda: served.states("stays") == {1: "END", 2: "AVAILABLE"})
        served.until(lambda: served.refusal("new")[0] is Code.NOT_FOUND)
        # The list that serves nothing is a list.
        served.reload(listing())
        served.until(lambda: served.refusal("old")[0] is Code.NOT_FOUND)


def test_a_list_that_is_refused_changes_nothing(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    a = bases("a", 1)
    nowhere = a.parent / "nowhere"
    with serving(listing(entry("kept", a))) as served:
        for text, code, details in (
            (
                listing(entry("new", a), entry("new", a)),
                Code.INVALID_ARGUMENT,
                "Illegal to list model new multiple times in config list",
            ),
            (
                listing(entry("new", Path("relative/path"))),
                Code.INVALID_ARGUMENT,
                "Expected model new to have an absolute path or URI; got base_path()=relative/path",
            ),
            (
                listing(f'config {{ name: "new" base_path: "{a}" }}'),
                Code.INVALID_ARGUMENT,
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                "ModelServerConfig::model_platform.",
            ),
            (
                listing(f'config {{ name: "new" base_path: "{a}" model_platform: "onnx" }}'),
                Code.INVALID_ARGUMENT,
                "Model new requests unsupported platform onnx",
            ),
            (
                listing(entry("new", nowhere)),
                Code.INVALID_ARGUMENT,
                f"Could not find base path {nowhere} for servable new: no such directory",
            ),
            (
                listing(entry("new", a, 'version_labels { key: "stable" value: 1 }')),
                Code.FAILED_PRECONDITION,
                "Request to assign label to version 1 of model new, which is not currently available for inference",
            ),
            (
                "",
                Code.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            ),
        ):
            assert served.reload_refusal(text) == (code, details)
        assert served.server.model_names == ("kept",)
        assert served.answer("kept") == 1
        assert served.refusal("new")[0] is Code.NOT_FOUND


def test_a_new_model_that_does_not_load_is_reported(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    a, broken = bases("a", 1), bases("broken")
    (broken / "4").mkdir()
    with serving(listing(entry("kept", a)), max_num_load_retries=0) as served:
        code, details = served.reload_refusal(listing(entry("kept", a), entry("new", broken)))
        assert code is Code.UNKNOWN
        assert details.startswith(
            "1 model(s) did not become available: {{{name: new version: 4} due to error: NOT_FOUND: "
        )
        assert served.answer("kept") == 1


def test_a_reload_waits_for_a_first_version_but_not_longer_than_its_client(
    bases: Callable[..., Path], serving: Callable[..., Any]
) -> None:
    a, empty = bases("a", 1), bases("empty")
    with serving(listing(entry("kept", a))) as served:
        assert served.reload_refusal(listing(entry("kept", a), entry("new", empty)), 0.5)[0] is Code.DEADLINE_EXCEEDED
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(served.reload, listing(entry("newer", empty)))
            served.until(lambda: served.server.model_names == ("newer",))
            bases("empty", 3)
            answer.result(30)
        assert served.answer("newer") == 3


def test_the_file_is_read_again(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    a, b = bases("a", 1), bases("b", 2)
    with serving(listing(entry("first", a)), model_config_file_poll_wait_seconds=0.05) as served:
        replace_file(served.file, "model_config_list { nonsense")
        time.sleep(0.2)
        assert served.answer("first") == 1
        served.file.unlink()
        time.sleep(0.2)
        assert served.answer("first") == 1
        # A label is refused while its version is loading, and given at a later look.
        replace_file(served.file, listing(entry("first", a), entry("second", b)))
        served.until(lambda: served.server.model_names == ("first", "second"))
        served.until(lambda: served.states("second") == {2: "AVAILABLE"})
        replace_file(served.file, listing(entry("second", b, 'version_labels { key: "stable" value: 2 }')))
        served.until(lambda: served.server.model_names == ("second",))
        assert served.answer("second", label="stable") == 2
        served.until(lambda: served.states("first") == {1: "END"})


def test_labels_move_and_stay_when_their_version_goes(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    base = bases("a", 1, 2)
    both = "model_version_policy { all {} }"

    def labelled(labels: dict[str, int], policy: str = both) -> str:
        pairs = " ".join(f'version_labels {{ key: "{label}" value: {number} }}' for label, number in labels.items())
        return listing(entry("m", base, f"{policy} {pairs}"))

    with serving(labelled({}), rest_api_port=-1) as served:
        served.until(lambda: served.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"})
        assert served.refusal("m", label="stable") == (
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: stable",
        )
        served.reload(labelled({"stable": 1, "canary": 2}))
        assert (served.answer("m", label="stable"), served.answer("m", label="canary")) == (1, 2)
        for label, version in (("stable", 1), ("canary", 2)):
            status, body = served.rest(f"/v1/models/m/labels/{label}:predict", {"instances": [[1, 0, 0]]})
            assert (status, body["predictions"][0]["version"]) == (200, version)
            status, metadata = served.rest(f"/v1/models/m/labels/{label}/metadata")
            assert (status, metadata["model_spec"]["version"]) == (200, str(version))
        assert served.rest("/v1/models/m/labels/none:predict", {"instances": [[1, 0, 0]]})[0] == 400

        served.reload(labelled({"stable": 2}))
        assert served.answer("m", label="stable") == 2
        assert served.refusal("m", label="canary")[0] is Code.INVALID_ARGUMENT
        assert served.reload_refusal(labelled({"stable": 3})) == (
            Code.FAILED_PRECONDITION,
            "Request to assign label to version 3 of model m, which is not currently available for inference",
        )
        assert served.answer("m", label="stable") == 2
        # Its version leaves, the label stays, and names something that is not there.
        (base / "2").rename(base.parent / "retired")
        served.until(lambda: served.states("m")[2] == "END")
        assert served.refusal("m", label="stable") == (
            Code.NOT_FOUND,
            "Servable not found for request: Specific(m, 2)",
        )


def test_labels_at_the_start(bases: Callable[..., Path], serving: Callable[..., Any], tmp_path: Path) -> None:
    base = bases("a", 1)
    text = listing(entry("m", base, 'version_labels { key: "stable" value: 1 }'))
    with pytest.raises(ServingError, match="FAILED_PRECONDITION: Request to assign label to version 1"), serving(text):
        pass
    with serving(text, allow_version_labels_for_unavailable_models=True) as served:
        assert served.answer("m", label="stable") == 1
        # A label that is in use moves only to a version that is available, whatever the flag says.
        moved = listing(entry("m", base, 'version_labels { key: "stable" value: 2 }'))
        assert served.reload_refusal(moved)[0] is Code.FAILED_PRECONDITION
        other = listing(entry("m", base, 'version_labels { key: "next" value: 2 }'))
        served.reload(other)
        assert served.refusal("m", label="next")[0] is Code.NOT_FOUND
        bases("a", 2)
        served.until(lambda: served.states("m").get(2) == "AVAILABLE")
        assert served.answer("m", label="next") == 2


def test_reloads_under_load_fail_no_request(bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    a, b = bases("a", 1), bases("b", 2)
    stop = threading.Event()
    failed: list[str] = []
    counts: list[int] = []

    def hammer(served: Served) -> None:
        count = 0
        while not stop.is_set():
            try:
                assert served.answer("kept") == 1
                count += 1
            except grpc.RpcError as error:
                failed.append(error.details())
        counts.append(count)

    with serving(listing(entry("kept", a))) as served:
        threads = [threading.Thread(target=hammer, args=(served,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                served.reload(listing(entry("other", b), entry("kept", a)))
                served.reload_refusal(listing(entry("kept", a), entry("kept", b)))
                served.reload(listing(entry("kept", a, 'version_labels { key: "stable" value: 1 }')))
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
    assert failed == []
    assert len(counts) == 3
    assert min(counts) > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_config_list { config { name: 3 } }", "Invalid protobuf file: .*ModelServerConfig as text"),
        ("custom_model_config {}", "does not yet support custom model config"),
        ('model_config_list { config { name: "m" base_path: "gs://b/m" model_platform: "tensorflow" } }', "local"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(ServingError, match=words):
        ModelServer(model_config_file=str(file), port=0).start()


def test_what_excludes_each_other(tmp_path: Path, bases: Callable[..., Path], serving: Callable[..., Any]) -> None:
    with pytest.raises(ServingError, match="nothing to serve"):
        ModelServer(port=0).start()
    with pytest.raises(ServingError, match="cannot be read"):
        ModelServer(model_config_file=str(tmp_path / "none"), port=0).start()
    text = listing(entry("m", bases("a", 1)))
    file = tmp_path / "models.config"
    file.write_text(text)
    with ModelServer("/nowhere", "ignored", port=0, model_config_file=str(file)) as server:
        assert server.model_names == ("m",)


def test_the_deprecated_model_type_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text('model_config_list { config { name: "m" base_path: "/m" model_type: TENSORFLOW } }')
    config = read_text_proto(file, model_server_config_pb2.ModelServerConfig())
    assert served_models(config)["m"].base_path == Path("/m")
    config.model_config_list.config[0].model_platform = "tensorflow"
    with pytest.raises(RequestError, match="Illegal setting both"):
        served_models(config)
