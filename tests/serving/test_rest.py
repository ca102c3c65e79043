"""The REST API over real HTTP."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mpru_tf.errors import ServingError
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.rest import RestServer
from mpru_tf.serving.servable import Servable

Publish = Callable[..., Path]
Running = Callable[..., Any]


@pytest.fixture
def call(publish: Publish, running: Running) -> Any:
    """Return a function that makes one REST call to a server of version 5 and returns status and JSON."""
    publish(5)
    with running(rest_api_port=-1) as (server, _):

        def make(path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            url = f"http://127.0.0.1:{server.rest_api_port}{path}"
            try:
                with urllib.request.urlopen(urllib.request.Request(url, data, named, method=method), timeout=30) as got:
                    assert got.headers["Content-Type"] == "application/json"
                    return got.status, json.load(got)
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read()
                    kind = error.headers["Content-Type"]
                    return error.code, json.loads(text) if kind == "application/json" and text else text

        make.port = server.rest_api_port  # type: ignore[attr-defined]
        yield make


def test_predict_in_rows(call: Any) -> None:
    assert call("/v1/models/scaler:predict", {"instances": [[1, 2, 3], [0.1, 0, 0]]}) == (
        200,
        {"predictions": [{"version": 5, "y": [5.0, 10.0, 15.0]}, {"version": 5, "y": [0.5, 0.0, 0.0]}]},
    )
    assert call(
        "/v1/models/scaler:predict", {"signature_name": "two", "instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}
    ) == (200, {"predictions": [3.0, 7.0]})


def test_predict_in_columns(call: Any) -> None:
    body = {"signature_name": "two", "inputs": {"a": [1, 2], "b": [3, 4]}}
    assert call("/v1/models/scaler/versions/5:predict", body) == (200, {"outputs": [4.0, 6.0]})
    assert call("/v1/models/scaler:predict", {"signature_name": "total", "inputs": [1, 2]}) == (200, {"outputs": 3.0})


def test_strings_and_bytes(call: Any) -> None:
    raw = base64.b64encode(b"a\x00b").decode()
    body = {"signature_name": "shout", "instances": [{"b64": raw}, "bc"]}
    assert call("/v1/models/scaler:predict", body)[1]["predictions"] == [
        {"loud": "A\x00B", "raw_bytes": {"b64": raw}},
        {"loud": "BC", "raw_bytes": {"b64": base64.b64encode(b"bc").decode()}},
    ]


def test_status(call: Any) -> None:
    available = {"version": "5", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert call("/v1/models/scaler") == (200, {"model_version_status": [available]})
    assert call("/v1/models/scaler/versions/5") == (200, {"model_version_status": [available]})
    assert call("/V1/Models/scaler?pretty=1") == (200, {"model_version_status": [available]})


def test_metadata(call: Any) -> None:
    status, metadata = call("/v1/models/scaler/metadata")
    assert status == 200
    assert metadata["model_spec"] == {"name": "scaler", "signature_name": "", "version": "5"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "two"} <= set(signatures)
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert signatures["serving_default"]["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}], "unknown_rank": False},
        "name": "serving_default_x:0",
    }
    assert call("/v1/models/scaler/versions/5/metadata") == (200, metadata)
    assert call("/v1/models/scaler/versions/6/metadata")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/models/half:predict", {"instances": [1.0]}, 404, "Servable not found for request: Latest(half)"),
        ("/v1/models/a%20b:predict", {"instances": [1.0]}, 404, "Servable not found for request: Latest(a b)"),
        ("/v1/models/scaler/versions/9:predict", {"instances": [1]}, 404, "Specific(scaler, 9)"),
        ("/v1/models/scaler/versions/99999999999999999999:predict", {}, 400, "Failed to convert version: 999999"),
        (f"/v1/models/scaler/versions/{'9' * 5000}:predict", {}, 400, "Failed to convert version: 999999"),
        ("/v1/models/scaler/labels/x:predict", {"instances": [1]}, 400, "Unrecognized servable version label: x"),
        ("/v1/models/scaler/versions/x:predict", {}, 400, "Malformed request: POST /v1/models/scaler/versions/x:pred"),
        ("/v1/models/scaler", {}, 400, "Malformed request: POST /v1/models/scaler"),
        ("/v1/models/scaler:classify", {"examples": []}, 400, "'examples' value is an empty array"),
        ("/v1/models/scaler:classify", {"examples": [{}]}, 400, "Was: tensorflow/serving/predict"),
        ("/v1/models/scaler:Predict", {"instances": [1]}, 400, "Malformed request: POST /v1/models/scaler:Predict"),
        ("/v1/models/scaler:predict", b"", 400, "The document is empty"),
        ("/v1/models/scaler:predict", b"{", 400, "JSON Parse error: "),
        ("/v1/models/scaler:predict", {"instances": ["x"]}, 400, "not of expected type: float"),
        ("/v1/models/scaler:predict", {"signature_name": "two", "inputs": {"a": [1, 2], "b": [1, 2, 3]}}, 400, ""),
        (
            "/v1/models/scaler:predict",
            {"signature_name": "x", "instances": [1]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        ("/v1/models/scaler:predict", {"signature_name": "total", "instances": [1]}, 400, "no shape information"),
        ("/v1/models/scaler:predict:predict", None, 400, "Malformed request: GET"),
        ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
        ("/v1/models/scaler/versions/7", None, 404, "Could not find version 7 of model scaler"),
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/foo", None, 400, "Malformed request: GET /v1/foo"),
    ],
)
def test_refusals(call: Any, path: str, body: Any, status: int, words: str) -> None:
    got, answer = call(path, body)
    assert got == status
    assert list(answer) == ["error"]
    assert words in answer["error"]


def test_the_transport(call: Any) -> None:
    assert call("/index.html")[0] == 404
    assert call("/v1/models/scaler", method="PUT") == (400, {"error": "Malformed request: PUT /v1/models/scaler"})
    assert call("/v1/models/scaler", method="HEAD")[0] == 400
    assert call("/v1/models/scaler:predict", method="OPTIONS", Origin="http://a") == (
        400,
        {"error": "Malformed request: OPTIONS /v1/models/scaler:predict"},
    )
    body = json.dumps({"instances": [[1, 1, 1]]}).encode()
    path = "/v1/models/scaler:predict"
    assert call(path, gzip.compress(body), Content_Encoding="gzip")[0] == 200
    assert call(path, gzip.compress(body), Content_Encoding="x-gzip", Accept_Encoding="gzip")[0] == 200
    assert call(path, body, Content_Encoding="gzip")[0] == 400
    assert call(path, gzip.compress(body)[:-9], Content_Encoding="gzip")[0] == 400
    assert call(path, body, Content_Length="-1")[0] == 400

    connection = http.client.HTTPConnection("127.0.0.1", call.port, timeout=30)
    for _ in range(3):  # one connection, and chunks
        connection.request("POST", path, iter([body[:5], body[5:]]), encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 200
        assert json.load(response)["predictions"][0]["version"] == 5
    connection.close()
    for nonsense in (b"zzz\r\n", b"5\r\nab"):
        with socket.create_connection(("127.0.0.1", call.port), timeout=30) as raw:
            raw.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + nonsense)
            raw.shutdown(socket.SHUT_WR)
            assert b" 400 " in raw.recv(1000)


def test_a_long_request(call: Any) -> None:
    rows = [[i, i / 7, -i] for i in range(20_000)]
    status, answer = call("/v1/models/scaler:predict", {"instances": rows})
    assert status == 200
    assert len(answer["predictions"]) == 20_000
    assert answer["predictions"][-1]["y"] == pytest.approx([5 * value for value in rows[-1]], rel=1e-6)


def test_many_connections_at_once(call: Any) -> None:
    def ask(i: int) -> bool:
        body = {"signature_name": "total", "inputs": [i, 1]}
        return call("/v1/models/scaler:predict", body) == (200, {"outputs": i + 1.0})

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))


def test_stopping_finishes_requests_and_closes_idle_connections(publish: Publish, running: Running) -> None:
    publish(1)
    with running(rest_api_port=-1) as (server, _):
        address = ("127.0.0.1", server.rest_api_port)
        idle = http.client.HTTPConnection(*address, timeout=30)
        idle.request("GET", "/v1/models/scaler")
        assert idle.getresponse().read()
        answers: list[Any] = []

        def slow() -> None:
            busy = http.client.HTTPConnection(*address, timeout=60)
            body = json.dumps({"signature_name": "slow", "inputs": 300_000})
            busy.request("POST", "/v1/models/scaler:predict", body)
            answers.append(json.load(busy.getresponse()))
            busy.close()

        thread = threading.Thread(target=slow)
        thread.start()
        time.sleep(0.2)
        server.stop()
        thread.join(60)
        assert answers == [{"outputs": 300_000}]
        idle.close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address, timeout=5)


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServingError, match="REST port"):
        RestServer(ServableManager(Servable.load), "127.0.0.1", taken.getsockname()[1])
