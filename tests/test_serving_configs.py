"""serving_configs/: every file is what its reader takes, they agree with each other, and servers really run on them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ModelStore
from google.protobuf import text_format
from saved_models import LABELS
from tensorflow_serving.config import model_server_config_pb2
from typer.main import get_command
from typer.testing import CliRunner

import mpru_tf
from mpru_tf.cli import app
from mpru_tf.serving.batching import BatchingParameters
from mpru_tf.serving.config import read_text_proto
from mpru_tf.serving.messages import message_type
from mpru_tf.serving.options import WITHOUT_EFFECT, flags
from mpru_tf.serving.server import ModelServer
from mpru_tf.warmup import WARMUP_FILE, read_warmup

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "serving_configs"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in FOLDER.rglob("*") if path.is_file())
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
OLDEST_KUBERNETES = "1.29"  # older ones want a condition in every rule of a podFailurePolicy


class StrictLoader(yaml.SafeLoader):
    """YAML in which no key comes twice: the last one would win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key comes twice among {keys}"
        return super().construct_mapping(node, deep)


def parsed(name: str) -> Any:
    return yaml.load((FOLDER / name).read_text(encoding="utf-8"), StrictLoader)


def container(name: str) -> dict[str, Any]:
    """The one container of a manifest."""
    spec = parsed(f"kubernetes/{name}")["spec"]
    if "jobTemplate" in spec:
        spec = spec["jobTemplate"]["spec"]
    (found,) = spec["template"]["spec"]["containers"]
    return dict(found)


COMPOSE = parsed("docker-compose.yml")
SERVING, FORGET = COMPOSE["services"]["serving"], COMPOSE["services"]["forget"]
KSERVE = parsed("kserve/inferenceservice.yaml")
KUSTOMIZATION = parsed("kustomization.yaml")


# ---------------------------------------------------------------------------------------------------------- text protos
def models_config(name: str = "models.config") -> Any:
    return read_text_proto(FOLDER / name, model_server_config_pb2.ModelServerConfig())


def test_batching_and_monitoring_are_the_messages_that_servers_read() -> None:
    batching = read_text_proto(FOLDER / "batching.config", message_type("tensorflow.serving.BatchingParameters")())
    parameters = BatchingParameters.from_message(batching)
    assert parameters.allowed_batch_sizes[-1] == batching.max_batch_size.value
    monitoring = read_text_proto(FOLDER / "monitoring.config", message_type("tensorflow.serving.MonitoringConfig")())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_labels_are_the_same_models_a_step_later() -> None:
    before, during = models_config(), models_config("labels.config")
    (entry,) = before.model_config_list.config
    assert dict(entry.version_labels) == {"stable": 1, "canary": 1}
    entry.version_labels["canary"] = 2
    assert text_format.MessageToString(before) == text_format.MessageToString(during)


# -------------------------------------------------------------------------------------------------------------- schemas
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_kubernetes_takes_it(path: Path, version: str) -> None:
    document = parsed(f"kubernetes/{path.name}")
    assert version.startswith(kubernetes_validate.validate(document, version, strict=True))
    document["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


def strict(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required.split()}


TEXT, BOOL, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
DURATION = {"type": "string", "pattern": r"^(\d+(us|ms|s|m|h))+$"}
MOUNT = strict("type source target", type={"enum": ["bind", "volume"]}, source=TEXT, target=TEXT, read_only=BOOL)
PINNED = {"type": "string", "pattern": r"^[\w./-]+:\d+\.\d+\.\d+$"}

# https://docs.docker.com/reference/compose-file/services/, as much of it as is used here
SERVICE = strict(
    "image command",
    image=PINNED,
    build=strict("context dockerfile", context=TEXT, dockerfile=TEXT),
    entrypoint=TEXTS,
    command=TEXTS,
    profiles=TEXTS,
    user=TEXT,
    ports={"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
    volumes={"type": "array", "items": MOUNT},
    read_only=BOOL,
    tmpfs=TEXTS,
    cap_drop=TEXTS,
    security_opt=TEXTS,
    network_mode=TEXT,
    healthcheck=strict(
        "test interval timeout retries start_period",
        test={"type": "array", "prefixItems": [{"enum": ["CMD"]}], "items": TEXT, "minItems": 2},
        interval=DURATION,
        timeout=DURATION,
        retries=COUNT,
        start_period=DURATION,
    ),
    stop_grace_period=DURATION,
    restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
)
COMPOSE_SCHEMA = strict("name services", name=TEXT, services={"type": "object", "additionalProperties": SERVICE})

# https://kserve.github.io/website/docs/reference/crd-api, v1beta1: a predictor and its model, which is a container too
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"}}
PREDICTOR = strict(
    "model",
    minReplicas=COUNT,
    maxReplicas=COUNT,
    model=strict(
        "modelFormat storageUri",
        modelFormat=strict("name", name={"enum": ["tensorflow"]}, version={"enum": ["1", "2"]}),
        runtime={"enum": ["kserve-tensorflow-serving"]},
        runtimeVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        protocolVersion={"enum": ["v1", "grpc-v1"]},
        storageUri={"type": "string", "pattern": r"^(pvc|s3|gs|https)://[^/]+/.+$"},
        env={"type": "array", "items": strict("name value", name=TEXT, value=TEXT)},
        readinessProbe=strict(
            "exec",
            exec=strict("command", command=TEXTS),
            periodSeconds=COUNT,
            timeoutSeconds=COUNT,
            failureThreshold=COUNT,
        ),
        resources=strict("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    ),
)
KSERVE_SCHEMA = strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=strict("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}),
    spec=strict("predictor", predictor=PREDICTOR),
)
# https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/
KUSTOMIZATION_SCHEMA = strict(
    "apiVersion kind resources",
    apiVersion={"const": "kustomize.config.k8s.io/v1beta1"},
    kind={"const": "Kustomization"},
    resources=TEXTS,
    configMapGenerator={"type": "array", "items": strict("name files", name=TEXT, files=TEXTS)},
    generatorOptions=strict(disableNameSuffixHash=BOOL),
)


@pytest.mark.parametrize(
    ("document", "schema", "wrong"),
    [
        (COMPOSE, COMPOSE_SCHEMA, ["services", "serving", "image", "tensorflow/serving:latest"]),
        (COMPOSE, COMPOSE_SCHEMA, ["services", "serving", "port", ["127.0.0.1:8500:8500"]]),
        (COMPOSE, COMPOSE_SCHEMA, ["services", "serving", "ports", ["8500:8500"]]),
        (KSERVE, KSERVE_SCHEMA, ["spec", "predictor", "model", "storageUrl", "pvc://models/resnet"]),
        (KSERVE, KSERVE_SCHEMA, ["spec", "predictor", "model", "storageUri", "/models/resnet"]),
        (KUSTOMIZATION, KUSTOMIZATION_SCHEMA, ["resource", []]),
    ],
)
def test_compose_kserve_and_kustomize_take_it(document: Any, schema: dict[str, Any], wrong: list[Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    changed = place = copy.deepcopy(document)
    *way, last, value = wrong
    for key in way:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, schema, jsonschema.Draft202012Validator)


# ------------------------------------------------------------------------------------------------------------ agreement
def test_images_are_the_same_everywhere() -> None:
    server = SERVING["image"]
    assert container("deployment.yaml")["image"] == server
    assert KSERVE["spec"]["predictor"]["model"]["runtimeVersion"] == server.split(":")[1]
    own = f"mpru-tf:{mpru_tf.__version__}"
    assert {FORGET["image"], container("forget-job.yaml")["image"], container("audit.yaml")["image"]} == {own}
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert f"-t {own} " in dockerfile
    assert (ROOT / FORGET["build"]["dockerfile"]).is_file()
    for copied in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())


def test_servers_are_given_flags_that_there_are_and_files_that_there_are() -> None:
    known = {flag.name for flag in flags()} | WITHOUT_EFFECT.keys()
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    for arguments in (SERVING["command"], container("deployment.yaml")["args"]):
        given = dict(argument.removeprefix("--").split("=") for argument in arguments)
        assert given.keys() <= known
        assert (given["port"], given["rest_api_port"]) == ("8500", "8501")
        for name, value in given.items():
            if name.endswith("_file"):
                assert value.removeprefix("/config/") in generated["files"]
                assert (FOLDER / value.removeprefix("/config/")).is_file()


@pytest.mark.parametrize(
    "arguments", [FORGET["command"], *(container(f"{n}.yaml")["args"] for n in ("forget-job", "audit"))]
)
def test_jobs_run_commands_that_there_are(arguments: list[str]) -> None:
    name, *rest = arguments
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(rest))  # raises on an option that there is not
    assert "/models/resnet" in rest
    for argument in rest:
        if "=/config/" in argument:
            assert (FOLDER / argument.split("=/config/")[1]).is_file()


def test_kubernetes_objects_name_each_other_rightly() -> None:
    documents = {path.stem: parsed(f"kubernetes/{path.name}") for path in MANIFESTS}
    assert {f"kubernetes/{path.name}" for path in MANIFESTS} - set(KUSTOMIZATION["resources"]) == {
        "kubernetes/forget-job.yaml"
    }
    assert all((FOLDER / name).is_file() for name in KUSTOMIZATION["resources"])
    deployment, service = documents["deployment"], documents["service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        documents["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    for job in ("forget-job", "audit"):
        spec = documents[job]["spec"]
        template = (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]
        assert template["metadata"]["labels"] != labels, "the service would send requests to a job"
    ports = {port["name"]: port["containerPort"] for port in container("deployment.yaml")["ports"]}
    assert (
        {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports == {"grpc": 8500, "rest": 8501}
    )
    name, port = container("audit.yaml")["args"][2].removeprefix("--server=").split(":")
    assert (name, int(port)) == (service["metadata"]["name"], ports["grpc"])
    claim = documents["volume"]["metadata"]["name"]
    config = KUSTOMIZATION["configMapGenerator"][0]["name"]
    for text in (path.read_text(encoding="utf-8") for path in MANIFESTS):
        assert set(re.findall(r"claimName: ([\w-]+)", text)) <= {claim}
        assert set(re.findall(r"configMap: \{name: ([\w-]+)", text)) <= {config}
    assert KSERVE["spec"]["predictor"]["model"]["storageUri"] == f"pvc://{claim}/resnet"


def test_only_the_forget_jobs_may_write_and_no_one_is_root() -> None:
    for path in MANIFESTS:
        for spec in pod_specs(parsed(f"kubernetes/{path.name}")):
            assert spec["securityContext"]["runAsNonRoot"]
            assert spec["automountServiceAccountToken"] is False
            (only,) = spec["containers"]
            assert only["securityContext"]["readOnlyRootFilesystem"]
            assert only["resources"].keys() == {"requests", "limits"}
            read_only = {mount["mountPath"]: mount.get("readOnly", False) for mount in only["volumeMounts"]}
            assert read_only["/models"] == (path.name != "forget-job.yaml")
    read_only = {mount["target"]: mount.get("read_only", False) for mount in SERVING["volumes"]}
    assert read_only == {"/models": True, "/config": True}
    sources = [{mount["target"]: mount["source"] for mount in service["volumes"]} for service in (SERVING, FORGET)]
    assert sources[0] == sources[1]


def pod_specs(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pod_specs(inner)


def test_the_probes_of_kubernetes_and_kserve_are_one() -> None:
    ours = container("deployment.yaml")
    theirs = KSERVE["spec"]["predictor"]["model"]
    assert theirs["env"] == ours["env"]
    script = ours["readinessProbe"]["exec"]["command"][-1]
    assert theirs["readinessProbe"]["exec"]["command"][-1] == script.replace("8501", "8080")
    assert "/v1/models/resnet " in script
    assert "/v1/models/resnet " in SERVING["healthcheck"]["test"][-1]


def test_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## From one machine to a fleet\n")[1].split("\n## ")[0]
    for name in FILES:
        assert f"`{name}`" in section, name
    assert set(re.findall(r"`(serving_configs/[\w/.-]+\.\w+)`", section)) <= set(FILES)


# ----------------------------------------------------------------------------------------------------------- for real
@pytest.fixture
def base(models: ModelStore, tmp_path: Path) -> Path:
    found = models.base("two_functions", tmp_path)
    (found / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return found.rename(tmp_path / "resnet")


def served(tmp_path: Path, name: str) -> ModelServer:
    """A server with the flags of the Deployment, its folders below ``tmp_path``."""
    config = tmp_path / name
    config.write_text((FOLDER / name).read_text(encoding="utf-8").replace('"/models', f'"{tmp_path}'), encoding="utf-8")
    types = {flag.name: flag.type for flag in flags()}
    options: dict[str, Any] = {}
    for argument in container("deployment.yaml")["args"]:
        flag, value = argument.removeprefix("--").replace("/config/", f"{FOLDER}/").split("=")
        options[flag] = value == "true" if types[flag] is bool else types[flag](value)
    changed = {"port": 0, "rest_api_port": -1, "model_config_file": str(config), "file_system_poll_wait_seconds": 0.05}
    return ModelServer(**{**options, **changed})


def succeeds(command: list[str], server: ModelServer, oldest: int) -> bool:
    script = re.sub(r"127\.0\.0\.1/\d+", f"127.0.0.1/{server.rest_api_port}", command[-1])
    environment = {"OLDEST_VERSION": str(oldest), "PATH": "/usr/bin:/bin"}
    return subprocess.run([*command[:-1], script], env=environment, capture_output=True, timeout=20).returncode == 0


def test_the_whole_way(base: Path, tmp_path: Path) -> None:
    """Serve with these files, forget as the job does, and see probes, labels, metrics and audit follow."""
    ready = container("deployment.yaml")["readinessProbe"]["exec"]["command"]
    healthy = SERVING["healthcheck"]["test"][1:]
    with served(tmp_path, "models.config") as server:
        assert succeeds(healthy, server, 1)
        assert succeeds(ready, server, 1)
        assert not succeeds(ready, server, 2)
        for label in ("stable", "canary"):
            assert answered(server, f"labels/{label}/metadata")["model_spec"]["version"] == "1"
        page = urlopen(f"http://127.0.0.1:{server.rest_api_port}/monitoring/prometheus/metrics", timeout=20).read()
        assert b":tensorflow:cc:saved_model:load_attempt_count" in page
        command = [text.replace("/models/", f"{tmp_path}/") for text in container("forget-job.yaml")["args"]]
        done = CliRunner().invoke(app, [text.replace("/config/", f"{FOLDER}/") for text in command])
        assert done.exit_code == 0, done.output
        assert len(list(read_warmup(base / "2" / WARMUP_FILE))) == 2 * 3
        wait_for_version_2(server)
        assert succeeds(ready, server, 2)
        assert succeeds(ready, server, 1)
        audit = [text.replace("/models/", f"{tmp_path}/") for text in container("audit.yaml")["args"]]
        audit = [text.replace("/config/models.config", f"{tmp_path}/models.config") for text in audit]
        found = CliRunner().invoke(
            app, [text.replace("resnet-serving:8500", f"127.0.0.1:{server.port}") for text in audit]
        )
        assert found.exit_code == 3, found.output  # version 1 is still there, and answers
    with served(tmp_path, "labels.config") as server:
        wait_for_version_2(server)
        assert answered(server, "labels/stable/metadata")["model_spec"]["version"] == "1"
        assert answered(server, "labels/canary/metadata")["model_spec"]["version"] == "2"
    assert not succeeds(healthy, server, 1)
    assert not succeeds(ready, server, 1)


def wait_for_version_2(server: ModelServer) -> None:
    command = ["wait", f"--server=127.0.0.1:{server.port}", "--model=resnet", "--version=2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


def answered(server: ModelServer, path: str) -> Any:
    with urlopen(f"http://127.0.0.1:{server.rest_api_port}/v1/models/resnet/{path}", timeout=20) as response:
        return json.load(response)
