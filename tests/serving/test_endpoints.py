"""What a server listens on besides its port: TLS, UNIX socket, health, metrics; limits; and how it stops."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from mpru_tf.errors import ServingError
from mpru_tf.serving.grpc_server import parse_channel_arguments
from mpru_tf.serving.messages import message_type
from mpru_tf.serving.server import ModelServer
from mpru_tf.warmup import WARMUP_FILE, write_warmup

Publish = Callable[..., Path]
Running = Callable[..., Any]
Code = grpc.StatusCode
X = np.array([[1, 2, 3]], np.float32)
LOCAL = [("grpc.use_local_subchannel_pool", 1)]


# ------------------------------------------------------------------------------------------------------- TLS, sockets
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and, signed by it, a server and a client: NAME.key and NAME.pem each."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "30")
    for name in ("server", "client"):
        (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "30", "-extfile", "san"),
        )
    return folder


def ssl_config(tmp_path: Path, certificates: Path, more: str = "") -> str:
    def pem(name: str) -> str:
        return json.dumps((certificates / name).read_text())

    text = f"server_key: {pem('server.key')} server_cert: {pem('server.pem')} {more.replace('CA', pem('ca.pem'))}"
    file = tmp_path / "ssl.config"
    file.write_text(text)
    return str(file)


def predict(channel: grpc.Channel) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "scaler"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].tensor_shape.dim.add(size=3)
    request.inputs["x"].float_val.extend([1, 2, 3])
    with channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)


def test_tls(publish: Publish, running: Running, tmp_path: Path, certificates: Path) -> None:
    publish(1)
    ca, key, pem = ((certificates / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    with running(ssl_config_file=ssl_config(tmp_path, certificates)) as (server, _):
        address = f"localhost:{server.port}"
        credentials = grpc.ssl_channel_credentials(ca)
        assert predict(grpc.secure_channel(address, credentials, LOCAL)).model_spec.version.value == 1
        with pytest.raises(grpc.RpcError) as refused:
            predict(grpc.insecure_channel(address, LOCAL))
        assert refused.value.code() is Code.UNAVAILABLE
    with running(ssl_config_file=ssl_config(tmp_path, certificates, "custom_ca: CA client_verify: true")) as (
        server,
        _,
    ):
        address = f"localhost:{server.port}"
        known = grpc.ssl_channel_credentials(ca, key, pem)
        assert predict(grpc.secure_channel(address, known, LOCAL)).model_spec.version.value == 1
        with pytest.raises(grpc.RpcError):
            predict(grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), LOCAL))


def test_tls_files_that_are_not_complete(publish: Publish, tmp_path: Path) -> None:
    publish(1)
    file = tmp_path / "ssl.config"
    for text, words in (
        ('server_key: "k" client_verify: true', "no server_cert, no custom_ca"),
        ("server_kye: 3", "Invalid protobuf file"),
    ):
        file.write_text(text)
        with pytest.raises(ServingError, match=words):
            ModelServer(tmp_path / "model", port=0, ssl_config_file=str(file)).start()


def test_unix_socket(publish: Publish, running: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    publish(1)
    path = tmp_path_factory.getbasetemp() / "grpc.sock"  # such a path may have 107 characters at most
    with running(grpc_socket_path=str(path)) as (_, client):
        assert predict(grpc.insecure_channel(f"unix:{path}", LOCAL)).model_spec.version.value == 1
        assert client.predict(client.request(x=X))[0].version.value == 1
    with pytest.raises(ServingError, match="cannot be bound"), running(grpc_socket_path="/nowhere/grpc.sock"):
        pass


def test_channel_arguments(publish: Publish, running: Running) -> None:
    assert parse_channel_arguments("a=1,b=-2,c=x=y,") == [("a", 1), ("b", -2), ("c", "x=y")]
    with pytest.raises(ServingError, match="KEY=VALUE"):
        parse_channel_arguments("a=1,b")
    publish(1)
    with running(grpc_channel_arguments="grpc.max_receive_message_length=1000") as (_, client):
        assert client.predict(client.request(x=X))[0].version.value == 1
        code, details = client.refusal(client.request(x=np.zeros([200, 3], np.float32)))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "larger than max" in details.lower()


# -------------------------------------------------------------------------------------------------------------- health
def health(channel: grpc.Channel) -> tuple[Any, Any, Any]:
    request = message_type("grpc.health.v1.HealthCheckRequest")
    codec = {
        "request_serializer": request.SerializeToString,
        "response_deserializer": message_type("grpc.health.v1.HealthCheckResponse").FromString,
    }
    check = channel.unary_unary("/grpc.health.v1.Health/Check", **codec)
    return request, check, channel.unary_stream("/grpc.health.v1.Health/Watch", **codec)


def test_health(publish: Publish, running: Running) -> None:
    publish(1)
    with running(grpc_max_threads=1) as (_, client), ThreadPoolExecutor(1) as pool:
        request, check, _ = health(client.channel)
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            assert check(request(service=service), timeout=10).status == 1
        with pytest.raises(grpc.RpcError) as refused:
            check(request(service="other"), timeout=10)
        assert refused.value.code() is Code.NOT_FOUND
        # It answers while the only thread for requests computes.
        slow = pool.submit(client.predict, client.request("slow", steps=200_000))
        time.sleep(0.1)
        assert check(request(), timeout=10).status == 1
        assert not slow.done()
        slow.result(60)


def test_watching_health_sees_the_end_and_does_not_hold_it_up(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (server, client):
        request, _, watch = health(client.channel)
        known, unknown = watch(request()), watch(request(service="other"))
        assert (next(known).status, next(unknown).status) == (1, 3)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 5
        assert next(known).status == 2
        for call in (known, unknown):
            with pytest.raises(grpc.RpcError) as ended:
                next(call)
            assert ended.value.code() is Code.UNAVAILABLE


# ------------------------------------------------------------------------------------------------------------- metrics
@pytest.fixture
def monitored(publish: Publish, running: Running, tmp_path: Path) -> Iterator[Any]:
    """A server with metrics, and a function that reads its page."""
    file = tmp_path / "monitoring.config"
    file.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
    version_dir = publish(1)
    log = message_log()
    write_warmup(version_dir / WARMUP_FILE, [log])
    with running(rest_api_port=-1, monitoring_config_file=str(file)) as (server, client):

        def page(path: str = "/monitoring/prometheus/metrics") -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_api_port}{path}", timeout=10) as got:
                assert got.headers["Content-Type"] == "text/plain"
                return got.read().decode()

        yield server, client, page


def message_log() -> Any:
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    x = log.predict_log.request.inputs["x"]
    x.dtype = 1
    x.tensor_shape.dim.add(size=0)
    x.tensor_shape.dim.add(size=3)
    return log


def test_metrics(monitored: Any, tmp_path: Path) -> None:
    server, client, page = monitored
    for _ in range(3):
        client.predict(client.request(x=X))
    client.refusal(client.request("none", x=X))
    strange = client.request(x=X)
    strange.model_spec.name = 'a"b\\c\nd'
    client.refusal(strange)
    body = json.dumps({"instances": [[1, 2, 3]]}).encode()
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/scaler:predict"
    urllib.request.urlopen(urllib.request.Request(url, body), timeout=10).close()

    lines = page().splitlines()
    path = tmp_path / "model" / "1"
    for line in (
        "# TYPE :tensorflow:cc:saved_model:load_attempt_count counter",
        f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{path}",status="success"}} 1',
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="scaler",status="OK"} 4',
        ':tensorflow:serving:request_count{model_name="scaler",status="FAILED_PRECONDITION"} 1',
        r':tensorflow:serving:request_count{model_name="a\"b\\c\nd",status="NOT_FOUND"} 1',
        "# TYPE :tensorflow:serving:request_latency histogram",
        ':tensorflow:serving:request_latency_count{model_name="scaler",API="Predict",entrypoint="GRPC"} 3',
        ':tensorflow:serving:request_latency_count{model_name="scaler",API="Predict",entrypoint="REST"} 1',
        f':tensorflow:serving:model_warmup_latency_count{{model_path="{path}",status="OK"}} 1',
    ):
        assert line in lines
    buckets = [
        line for line in lines if line.startswith(":tensorflow:serving:request_latency_bucket") and "GRPC" in line
    ]
    assert len(buckets) == 34
    assert [re.search(r'le="(.*?)"', line)[1] for line in buckets[:4]] == ["10", "18", "32.4", "58.32"]
    assert buckets[-1].endswith('le="+Inf"} 3')
    counts = [int(line.rpartition(" ")[2]) for line in buckets]
    assert counts == sorted(counts)
    sample = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*\{(\w+="(\\.|[^"\\])*",?)*\} \S+|# TYPE \S+ (counter|histogram)')
    for line in lines:
        assert sample.fullmatch(line), line


def test_metrics_are_where_the_file_says_or_nowhere(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    file = tmp_path / "monitoring.config"
    for text, path, status in (
        ("prometheus_config { enable: true path: '/metrics' }", "/metrics", 200),
        ("prometheus_config { enable: true path: '/metrics' }", "/monitoring/prometheus/metrics", 404),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics", 200),
        ("prometheus_config { enable: false }", "/monitoring/prometheus/metrics", 404),
    ):
        file.write_text(text)
        with running(rest_api_port=-1, monitoring_config_file=str(file)) as (server, _):
            connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=10)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()
    file.write_text("prometheus_config { enable: true }")
    with running(monitoring_config_file=str(file)) as (_, client):  # nowhere to show them, and no harm
        assert client.predict(client.request(x=X))[0].version.value == 1


# -------------------------------------------------------------------------------------------------------------- limits
def test_a_rest_request_does_not_wait_for_its_turn_for_ever(publish: Publish, running: Running) -> None:
    publish(1)
    with running(rest_api_port=-1, rest_api_num_threads=1, rest_api_timeout_in_ms=100) as (server, _):
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/scaler:predict"

        def ask(steps: int) -> int:
            body = json.dumps({"signature_name": "slow", "inputs": steps}).encode()
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as got:
                    return int(got.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(ask, 300_000)
            time.sleep(0.2)
            assert ask(1) == 504
            assert slow.result(60) == 200
            assert ask(1) == 200


# ------------------------------------------------------------------------------------------------------------ stopping
def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(
    publish: Publish, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    publish(1)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, rest_port = one.getsockname()[1], two.getsockname()[1]
    command = [sys.executable, "-m", "mpru_tf.cli", "serve", f"--port={port}", "--model_name", "scaler"]
    command += [f"--rest_api_port={rest_port}", f"--model_base_path={tmp_path / 'model'}", "--enable_model_warmup"]
    command += ["--flush_filesystem_caches=false", "--per_process_gpu_memory_fraction", "0.5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving scaler from ")
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", LOCAL)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "scaler"
        request.model_spec.signature_name = "slow"
        request.inputs["steps"].dtype = 3
        request.inputs["steps"].tensor_shape.SetInParent()
        request.inputs["steps"].int_val.append(400_000)
        body = json.dumps({"signature_name": "slow", "inputs": 400_000})

        def rest() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", rest_port, timeout=60)
            connection.request("POST", "/v1/models/scaler:predict", body)
            return json.load(connection.getresponse())

        with ThreadPoolExecutor(1) as pool:
            over_grpc, over_rest = stub.Predict.future(request, timeout=60), pool.submit(rest)
            time.sleep(0.5)
            assert not over_grpc.done()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(grpc.RpcError) as refused:
                model_service_pb2_grpc.ModelServiceStub(
                    grpc.insecure_channel(f"127.0.0.1:{port}", LOCAL)
                ).GetModelStatus(message_status(), timeout=10)
            assert refused.value.code() is Code.UNAVAILABLE
            assert over_grpc.result().outputs["steps"].int_val == [400_000]
            assert over_rest.result() == {"outputs": 400_000}
        _, errors = process.communicate(timeout=30)
        channel.close()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "--per_process_gpu_memory_fraction has no effect" in errors


def message_status() -> Any:
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "scaler"
    return request


def test_stopping_while_the_first_version_is_awaited(publish: Publish, tmp_path: Path) -> None:
    server = ModelServer(tmp_path / "model", port=0)
    failed: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except ServingError as error:
            failed.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    time.sleep(0.2)
    server.stop()
    starter.join(10)
    assert not starter.is_alive()
    assert "No longer waiting" in str(failed[0])
