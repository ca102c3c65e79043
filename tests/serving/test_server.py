"""The server over gRPC, as a client sees it: answers, refusals, hot swaps, stopping."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from mpru_tf.errors import ServingError
from mpru_tf.serving.server import ModelServer

Publish = Callable[..., Path]
Running = Callable[..., Any]
Code = grpc.StatusCode
X = np.array([[1, 2, 3]], np.float32)


def test_predict_answers_with_the_version_and_signature_it_used(publish: Publish, running: Running) -> None:
    publish(3)
    with running() as (_, client):
        spec, outputs = client.predict(client.request(x=X))
        assert (spec.name, spec.version.value, spec.signature_name) == ("scaler", 3, "serving_default")
        np.testing.assert_array_equal(outputs["y"], 3 * X)
        assert outputs["y"].dtype == np.float32
        assert outputs["version"].tolist() == [3]

        spec, outputs = client.predict(client.request("two", 3, a=np.float32([1, 2]), b=[3, 4]))
        assert spec.signature_name == "two"
        assert outputs["total"].tolist() == [4, 6]

        _, outputs = client.predict(client.request("shout", text=[b"abc", b"\xff"]))
        assert outputs["loud"].tolist() == [b"ABC", b"\xff"]
        _, outputs = client.predict(client.request("total", x=np.float32([1, 2])))
        assert outputs["sum"].shape == ()


def test_clients_that_read_typed_fields_and_write_them(publish: Publish, running: Running) -> None:
    publish(2)
    with running() as (_, client):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "scaler"
        request.inputs["x"].dtype = tf.float32.as_datatype_enum
        request.inputs["x"].float_val.append(2.0)  # one value for all three
        request.inputs["x"].tensor_shape.dim.add(size=1)
        request.inputs["x"].tensor_shape.dim.add(size=3)
        request.output_filter.append("y")
        response = client.prediction.Predict(request, timeout=30)
        assert list(response.outputs) == ["y"]
        assert list(response.outputs["y"].float_val) == [4, 4, 4]


def test_many_clients_at_once_get_their_own_answers(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client):

        def ask(i: int) -> bool:
            x = np.full([i % 5, 3], i, np.float32)
            return bool((client.predict(client.request(x=x))[1]["y"] == x).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(300)))


def test_refusals_have_the_real_servers_codes(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client):
        assert client.refusal(predict_pb2.PredictRequest()) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
        nameless = client.request(x=X)
        nameless.model_spec.name = ""
        assert client.refusal(nameless) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        unknown = client.request(x=X)
        unknown.model_spec.name = "nope"
        assert client.refusal(unknown) == (Code.NOT_FOUND, "Servable not found for request: Latest(nope)")
        gone = client.request(version=9, x=X)
        assert client.refusal(gone) == (Code.NOT_FOUND, "Servable not found for request: Specific(scaler, 9)")
        labelled = client.request(x=X)
        labelled.model_spec.version_label = "canary"
        assert client.refusal(labelled) == (Code.INVALID_ARGUMENT, "Unrecognized servable version label: canary")
        assert client.refusal(client.request("nope", x=X)) == (
            Code.FAILED_PRECONDITION,
            'Serving signature key "nope" not found.',
        )
        init_op = "__saved_model_init_op"
        assert client.refusal(client.request(init_op))[0] is Code.INTERNAL

        code, details = client.refusal(client.request(x=X, z=X))
        assert code is Code.INVALID_ARGUMENT
        assert details == (
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
            "Sent extra: {z}. Missing but required: {}."
        )
        code, details = client.refusal(client.request(z=X))
        assert code is Code.INVALID_ARGUMENT
        assert details.startswith("Signature input alias: x(feed name: serving_default_x:0) not found in request")
        assert client.refusal(client.request(x=X.astype(np.int64))) == (
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int64 is provided",
        )
        broken = client.request(x=X)
        broken.inputs["x"].tensor_content = b"123"
        assert client.refusal(broken) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")
        assert client.refusal(client.request("two", a=np.float32([1, 2]), b=[1, 2, 3]))[0] is Code.INVALID_ARGUMENT

        filtered = client.request(x=X)
        filtered.output_filter.append("nope")
        assert client.refusal(filtered) == (
            Code.INVALID_ARGUMENT,
            "output tensor alias not found in signature: nope Outputs expected to be in the set {version,y}.",
        )
        filtered.output_filter[:] = ["y", "y"]
        assert client.refusal(filtered) == (Code.INVALID_ARGUMENT, "duplicate output tensor alias: y")
        client.predict(client.request(x=X))  # none of this did any harm


def test_what_is_not_served_says_so(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client):
        for method, words in {
            "/tensorflow.serving.PredictionService/PredictStreamed": "It answers Classify, GetModelMetadata,",
            "/tensorflow.serving.SessionService/SessionRun": "",
            "/other.Service/Method": "",
        }.items():
            with pytest.raises(grpc.RpcError) as refused:
                client.channel.unary_unary(method)(b"", timeout=30)
            assert refused.value.code() is Code.UNIMPLEMENTED
            assert words in refused.value.details()


def test_metadata_is_the_signature_map(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client):
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "scaler"
        response = client.prediction.GetModelMetadata(request, timeout=30)
        assert (response.model_spec.name, response.model_spec.version.value) == ("scaler", 1)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(signatures)
        assert {"serving_default", "two", "shout", "total", "slow"} <= set(signatures.signature_def)
        assert signatures.signature_def["two"].inputs["b"].dtype == tf.int32.as_datatype_enum

        request.metadata_field[:] = []
        assert client.refusal(request, "GetModelMetadata")[0] is Code.INVALID_ARGUMENT
        request.metadata_field[:] = ["graph"]
        assert client.refusal(request, "GetModelMetadata") == (
            Code.INVALID_ARGUMENT,
            "Metadata field graph is not supported",
        )
        request.metadata_field[:] = ["signature_def"]
        request.model_spec.version.value = 5
        assert client.refusal(request, "GetModelMetadata")[0] is Code.NOT_FOUND


def test_status(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client):
        request = get_model_status_pb2.GetModelStatusRequest()
        for change, code, details in (
            (lambda: None, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
            (
                lambda: setattr(request.model_spec, "name", "nope"),
                Code.NOT_FOUND,
                "Could not find any versions of model nope",
            ),
            (
                lambda: setattr(request.model_spec.version, "value", 7),
                Code.NOT_FOUND,
                "Could not find version 7 of model nope",
            ),
        ):
            change()
            with pytest.raises(grpc.RpcError) as refused:
                client.models.GetModelStatus(request, timeout=30)
            assert (refused.value.code(), refused.value.details()) == (code, details)
        request.model_spec.name = "scaler"
        request.model_spec.version.value = 1
        (status,) = client.models.GetModelStatus(request, timeout=30).model_version_status
        assert status.version == 1
        assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
        assert status.HasField("status")
        assert (status.status.error_code, status.status.error_message) == (0, "")


def test_hot_swaps_under_load_fail_no_request_and_mix_no_answer(publish: Publish, running: Running) -> None:
    publish(1)
    stop = threading.Event()
    failed: list[str] = []
    seen: list[list[int]] = []
    reached: set[int] = set()

    def hammer(client: Any) -> None:
        mine: list[int] = []
        while not stop.is_set():
            try:
                spec, outputs = client.predict(client.request(x=X))
            except grpc.RpcError as error:
                failed.append(f"{error.code()} {error.details()}")
                continue
            versions = {spec.version.value, *outputs["version"].tolist(), *(outputs["y"] / X).ravel().tolist()}
            if len(versions) != 1:
                failed.append(f"mixed: {versions}")
            mine.append(spec.version.value)
            reached.add(spec.version.value)
        seen.append(mine)

    with running() as (_, client):
        threads = [threading.Thread(target=hammer, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for version in (2, 3, 4):
                publish(version)
                client.wait_for(**{f"v{version}": "AVAILABLE", f"v{version - 1}": "END"})
                deadline = time.monotonic() + 30
                while version not in reached and time.monotonic() < deadline:
                    time.sleep(0.01)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert failed == []
        assert client.states() == {1: "END", 2: "END", 3: "END", 4: "AVAILABLE"}
    assert len(seen) == 4
    for mine in seen:
        assert mine == sorted(mine)  # no client ever fell back to an older version
    assert {version for mine in seen for version in mine} == {1, 2, 3, 4}


def test_a_request_in_flight_finishes_on_the_version_it_began_on(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (_, client), ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.predict, client.request("slow", steps=300_000))
        time.sleep(0.1)
        publish(2)
        client.wait_for(v2="AVAILABLE")
        assert client.predict(client.request(x=X))[0].version.value == 2
        spec, outputs = slow.result(60)
        assert outputs["steps"] == 300_000
        assert spec.version.value == 1
        client.wait_for(v1="END")


def test_a_broken_version_leaves_the_old_one_and_says_why(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    with running() as (_, client):
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "saved_model.pb").write_bytes(b"\x08\x01 not a model")
        broken.rename(tmp_path / "model" / "2")
        assert client.wait_for(v2="END") == {1: "AVAILABLE", 2: "END"}
        assert client.predict(client.request(x=X))[0].version.value == 1
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "scaler"
        request.model_spec.version.value = 2
        (status,) = client.models.GetModelStatus(request, timeout=30).model_version_status
        assert status.status.error_code != 0
        assert "cannot load" in status.status.error_message
        # The next good one is served, as if nothing had been.
        publish(3)
        assert client.wait_for(v3="AVAILABLE", v1="END")[2] == "END"


def test_children_that_are_no_versions_are_ignored(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    with running() as (_, client):
        shutil.copytree(tmp_path / "model" / "1", tmp_path / "model" / ".staging-2")
        (tmp_path / "model" / "README").write_text("hello")
        publish(3, "0003")
        client.wait_for(v3="AVAILABLE")
        assert set(client.states()) == {1, 3}


def test_a_deleted_version_gives_way_to_the_previous_one(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    publish(2)
    with running() as (_, client):
        assert client.states() == {2: "AVAILABLE"}
        (tmp_path / "model" / "2").rename(tmp_path / "retired-2")
        client.wait_for(v1="AVAILABLE", v2="END")
        assert client.predict(client.request(x=X))[0].version.value == 1
        (tmp_path / "model" / "1").rename(tmp_path / "retired-1")
        client.wait_for(v1="END")
        assert client.refusal(client.request(x=X))[0] is Code.NOT_FOUND
        (tmp_path / "retired-2").rename(tmp_path / "model" / "2")
        client.wait_for(v2="AVAILABLE")
        assert client.predict(client.request(x=X))[0].version.value == 2


def test_a_base_path_that_vanishes_changes_nothing(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    with running() as (_, client):
        (tmp_path / "model").rename(tmp_path / "elsewhere")
        time.sleep(0.3)
        assert client.predict(client.request(x=X))[0].version.value == 1


def test_stopping_lets_requests_in_flight_finish(publish: Publish, running: Running) -> None:
    publish(1)
    with running() as (server, client), ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.predict, client.request("slow", steps=300_000))
        time.sleep(0.2)
        assert not server.wait(0)
        server.stop()
        assert slow.result(60)[1]["steps"] == 300_000
        assert server.wait(0)
        assert client.refusal(client.request(x=X))[0] is Code.UNAVAILABLE
        server.stop()  # twice is no harm


def test_an_input_with_a_default_may_be_left_out(publish: Publish, running: Running) -> None:
    graph = publish(1) / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    two = model.meta_graphs[0].signature_def["two"]
    two.defaults["b"].CopyFrom(tf.make_tensor_proto([10, 20]))
    graph.write_bytes(model.SerializeToString())
    with running() as (_, client):
        assert client.predict(client.request("two", a=np.float32([1, 2])))[1]["total"].tolist() == [11, 22]
        code, details = client.refusal(client.request("two", b=[1]))
        assert code is Code.INVALID_ARGUMENT
        assert "Signature input alias: a(feed name: two_a:0) not found in request" in details
        code, details = client.refusal(client.request("two", a=np.float32([1]), z=[1]))
        assert code is Code.INVALID_ARGUMENT
        assert details.startswith("Inputs contains invalid name.")


def test_serving_in_the_foreground_ends_gracefully_on_sigterm(publish: Publish, tmp_path: Path) -> None:
    publish(1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f"from mpru_tf.serving.server import serve; serve({str(tmp_path / 'model')!r}, port={port})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60, wait_for_ready=True)
        process.terminate()
        errors = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_the_server_waits_for_a_first_version(publish: Publish, running: Running, tmp_path: Path) -> None:
    server = ModelServer(tmp_path / "model", port=0, file_system_poll_wait_seconds=0.05)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(server.start)
        time.sleep(0.2)
        assert not started.done()
        publish(1)
        started.result(60)
    assert server.port > 0
    assert {version: status.state.name for version, status in server.statuses().items()} == {1: "AVAILABLE"}
    with pytest.raises(ServingError, match="started before"):
        server.start()
    server.stop()


def test_starting_without_a_model_is_refused(publish: Publish, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="Could not find base path .*nope"):
        ModelServer(tmp_path / "nope", port=0).start()
    with pytest.raises(ServingError, match="in time"):
        ModelServer(tmp_path / "model", port=0).start(timeout=0.1)
    shutil.rmtree(publish(1) / "variables")
    with pytest.raises(ServingError, match=r"version: 1} due to error: .*variables"):
        ModelServer(tmp_path / "model", port=0, max_num_load_retries=0).start()


def test_a_taken_port_is_refused_before_anything_is_loaded(publish: Publish, running: Running, tmp_path: Path) -> None:
    publish(1)
    with running() as (server, _):
        for ports in ({"port": server.port}, {"port": 0, "rest_api_port": server.port}):
            second = ModelServer(tmp_path / "model", **ports)
            with pytest.raises(ServingError, match="cannot be bound"):
                second.start()
            assert second.statuses() == {}
    same = ModelServer(tmp_path / "model", port=12345, rest_api_port=12345)
    with pytest.raises(ServingError, match="share"):
        same.start()
