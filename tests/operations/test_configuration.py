"""Editing a ModelServerConfig in its file: what it says is exactly what was asked for, and comments stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError
from mpru_tf.operations.configuration import Configuration

TWO_MODELS = """\
# comment with { and "
model_config_list {
  config {
    name: "other"  # not this one: version_labels { key: "stable" value: 1 }
    base_path: "/models/other"
    version_labels { key: 'stable' value: 1 }
  }
  config: {
    name: 'small';
    base_path: "/models/" "small",
    model_platform: "tensorflow"
    model_version_policy: { specific: { versions: 1, versions: 2 } }
    version_labels < key: "stable", value: 1 >
    version_labels {
      key: "canary"
      value: 2  # the new one
    }
  }
}
"""
ONE_LINE = (
    'model_config_list{config{name:"small"base_path:"/m"model_platform:"tensorflow"'
    'model_version_policy{specific{versions:1}}version_labels{key:"stable"value:1}}}'
)
LISTED = (
    'model_config_list: { config: [ { name: "small", base_path: "/m", '
    "model_version_policy { specific { versions: [1, 2] } } } ] }"
)
TEXTS = {"two models": TWO_MODELS, "one line": ONE_LINE, "a list": LISTED}


def parse(text: str) -> model_server_config_pb2.ModelServerConfig:
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def configuration(text: str) -> Configuration:
    return Configuration(text, parse(text))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
class TestAnyForm:
    @pytest.mark.parametrize("label", ["stable", "canary", "new", 'quoted "label"', "Ωmega"])
    def test_label(self, text: str, label: str) -> None:
        before = configuration(text)
        after = before.with_label("small", label, 7)
        assert after.labels("small") == {**before.labels("small"), label: 7}
        expected = parse(text)
        next(e for e in expected.model_config_list.config if e.name == "small").version_labels[label] = 7
        assert parse(after.text) == expected == after.message

    def test_back_again(self, text: str) -> None:
        before = configuration(text)
        first = before.with_label("small", "stable", 2).with_label("small", "stable", 1)
        assert first.message == before.with_label("small", "stable", 1).message

    @pytest.mark.parametrize("change", [(1, 3), (3, 4, 5), ()])
    def test_versions(self, text: str, change: tuple[int, ...]) -> None:
        after = configuration(text).with_specific_versions("small", change)
        assert after.specific_versions("small") == change
        assert parse(after.text) == after.message


class TestPlaces:
    def test_only_the_number_changes(self) -> None:
        after = configuration(TWO_MODELS).with_label("small", "canary", 33)
        assert after.text == TWO_MODELS.replace("value: 2  #", "value: 33  #")

    def test_a_new_label_comes_last(self) -> None:
        after = configuration(TWO_MODELS).with_label("small", "new", 3)
        line = '    version_labels { key: "new" value: 3 }\n'
        assert after.text == TWO_MODELS.replace("    }\n  }\n}\n", "    }\n" + line + "  }\n}\n")

    def test_a_version_more(self) -> None:
        after = configuration(TWO_MODELS).with_specific_versions("small", [1, 2, 3])
        assert after.text == TWO_MODELS.replace("versions: 2 }", "versions: 2 versions: 3 }")

    def test_a_version_less(self) -> None:
        after = configuration(TWO_MODELS).with_specific_versions("small", [2])
        assert after.text == TWO_MODELS.replace(" versions: 1,", "")

    def test_policies(self) -> None:
        before = configuration(TWO_MODELS)
        assert before.kept("small") is None
        assert before.kept("other") == 1
        assert before.specific_versions("other") is None
        assert before.base_path("small") == "/models/small"


class TestRefusals:
    def test_an_unknown_model(self) -> None:
        with pytest.raises(ServingError, match="other, small"):
            configuration(TWO_MODELS).labels("large")

    @pytest.mark.parametrize("content", [b"model_config_list {", b"model_config_lost {}", b"\xff"])
    def test_no_configuration(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "models.config").write_bytes(content)
        with pytest.raises(ServingError, match="cannot be read"):
            Configuration.read(tmp_path / "models.config")

    def test_no_file(self, tmp_path: Path, config: Callable[..., Path]) -> None:
        with pytest.raises(ServingError, match="cannot be read"):
            Configuration.read(tmp_path / "nothing")
        assert Configuration.read(config(tmp_path, stable=1)).labels("small") == {"stable": 1}
