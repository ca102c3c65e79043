"""Waiting for that version, and what a server says about versions and labels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpru_tf.errors import ServingError
from mpru_tf.operations.client import Server
from mpru_tf.operations.configuration import Configuration
from mpru_tf.operations.waiting import status, wait_until_available
from mpru_tf.serving.server import ModelServer

Start = Callable[..., Server]


def appear(source: Path, base: Path, version: int) -> None:
    """Publish a version with one rename."""
    staged = base / f"staged-{version}"
    shutil.copytree(source, staged)
    staged.rename(base / str(version))


class TestWait:
    def test_that_version_not_any(self, base: Path, pristine: Path, start: Start) -> None:
        server = start(base)
        seen: list[str] = []
        later = threading.Timer(0.7, appear, (pristine / "2", base, 2))
        later.start()
        waited = wait_until_available(server, 2, timeout=30, progress=seen.append)
        later.join()
        assert waited.version == 2
        assert waited.seconds >= 0.5
        assert seen[0] == "version 1 AVAILABLE; version 2 is not known there yet"

    def test_any(self, base: Path, start: Start) -> None:
        assert wait_until_available(start(base), timeout=30).version == 1

    def test_a_version_that_does_not_come(self, base: Path, start: Start) -> None:
        with pytest.raises(ServingError, match=r"version 9 of small.*version 1 AVAILABLE; version 9 is not known"):
            wait_until_available(start(base), 9, timeout=0.5)

    def test_a_model_that_is_not_there(self, base: Path, start: Start) -> None:
        with (
            Server(start(base).target, "large") as server,
            pytest.raises(ServingError, match="no version of large"),
        ):
            wait_until_available(server, timeout=0.3)

    def test_a_broken_version_ends_it_with_the_reason(self, base: Path, start: Start) -> None:
        server = start(base)
        shutil.copytree(base / "1", base / "staged")
        (base / "staged" / "saved_model.pb").write_bytes(b"nonsense")
        (base / "staged").rename(base / "2")
        began = time.monotonic()
        with pytest.raises(ServingError, match=r"version 2 END \(\w+: .*saved_model"):
            wait_until_available(server, 2, timeout=60)
        assert time.monotonic() - began < 20
        assert wait_until_available(server, 1, timeout=1).version == 1

    def test_an_unloaded_version_ends_it(self, base: Path, pristine: Path, start: Start) -> None:
        server = start(base)
        appear(pristine / "2", base, 2)
        wait_until_available(server, 2, timeout=30)
        while 1 in server.available():
            time.sleep(0.02)
        with pytest.raises(ServingError, match=r"version 1 END\. It was unloaded"):
            wait_until_available(server, 1, timeout=30)

    def test_a_server_that_starts_later_is_waited_for(self, base: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        seen: list[str] = []
        late = ModelServer(base, model_name="small", port=port)
        starting = threading.Timer(0.7, late.start)
        starting.start()
        try:
            with Server(f"127.0.0.1:{port}", "small") as server:
                assert wait_until_available(server, 1, timeout=30, progress=seen.append).version == 1
        finally:
            starting.join()
            late.stop()
        assert "cannot be reached" in seen[0]

    def test_over_a_unix_socket(self, base: Path, start: Start, tmp_path: Path) -> None:
        start(base, grpc_socket_path=str(tmp_path / "socket"))
        with Server(f"unix:{tmp_path}/socket", "small") as server:
            assert wait_until_available(server, 1, timeout=30).version == 1

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
    def test_over_tls(self, base: Path, start: Start, tmp_path: Path) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "3", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        config = tmp_path / "ssl.config"
        key, certificate = (
            tmp_path.joinpath(name).read_text().replace("\n", "\\n") for name in ("key.pem", "cert.pem")
        )
        config.write_text(f'server_key: "{key}" server_cert: "{certificate}"')
        plain = start(base, ssl_config_file=str(config))
        with Server(plain.target, "small", ca=str(tmp_path / "cert.pem")) as server:
            assert wait_until_available(server, 1, timeout=30).version == 1
        assert plain.look().versions is None

    @pytest.mark.parametrize("target", ["http://localhost:8501", "localhost", ""])
    def test_no_grpc_address(self, target: str) -> None:
        with pytest.raises(ServingError, match="HOST:PORT"):
            Server(target, "small")

    def test_without_tensorflow(self) -> None:
        """A readiness probe asks every few seconds."""
        script = (
            "import sys; from mpru_tf import cli\n"
            "sys.argv = ['mpru-tf', 'wait', '--server', '127.0.0.1:1', '--timeout', '0.1']\n"
            "try: cli.main()\n"
            "except SystemExit as ended: assert ended.code == 1\n"
            "sys.exit('tensorflow' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestStatus:
    def test_states_errors_and_labels(self, filtered: Path, config: Callable[..., Path], start: Start) -> None:
        (filtered / "3").mkdir()
        server = start(model_config_file=str(config(filtered)))
        for version in (1, 2):
            wait_until_available(server, version, timeout=30)
        server.reload(Configuration.read(config(filtered, stable=1, other=2)).message)
        for _ in range(100):
            seen = status(server, ("stable", "canary", "other"))
            if seen.versions[-1].state == "END":
                break
            time.sleep(0.05)
        assert [(state.version, state.state) for state in seen.versions] == [
            (1, "AVAILABLE"),
            (2, "AVAILABLE"),
            (3, "END"),
        ]
        assert seen.versions[2].error_code == "NOT_FOUND"
        assert seen.labels == {"stable": 1, "other": 2}
        assert seen.to_dict()["versions"][0] == {
            "version": 1,
            "state": "AVAILABLE",
            "error_code": None,
            "error": None,
        }

    def test_a_model_that_is_not_there(self, base: Path, start: Start) -> None:
        with Server(start(base).target, "large") as server, pytest.raises(ServingError, match="large"):
            status(server)

    def test_a_server_that_is_not_there(self) -> None:
        with Server("127.0.0.1:1", "small") as server, pytest.raises(ServingError, match="cannot be asked"):
            status(server)
