"""The package as a whole: what it offers, what importing it costs, and that its parts agree."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mpru_tf
from mpru_tf import errors

PACKAGE = Path(mpru_tf.__file__).parent
HEAVY = ("tensorflow", "keras", "tf_keras", "matplotlib", "sklearn", "grpc", "scipy", "google.protobuf")


def loaded_after(statement: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["mpru_tf", "mpru_tf.cli", "mpru_tf.labels", "mpru_tf.resnet", "mpru_tf.filters"])
def test_import_is_light(module: str) -> None:
    assert loaded_after(f"import {module}") == set()


def test_errors_are_light_through_the_package() -> None:
    assert loaded_after("import mpru_tf; mpru_tf.ForgetListError, mpru_tf.FilterSpec, dir(mpru_tf)") == set()


def test_all_is_exact() -> None:
    """Whatever type checkers are told is there, is there; nothing else is public."""
    tree = ast.parse(Path(mpru_tf.__file__).read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = [alias.name for node in guard.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted([*told, "__version__"]) == sorted(mpru_tf.__all__)
    assert len(set(mpru_tf.__all__)) == len(mpru_tf.__all__)


@pytest.mark.parametrize("name", mpru_tf.__all__)
def test_public_names_resolve_to_where_type_checkers_look(name: str) -> None:
    value = getattr(mpru_tf, name)
    assert not inspect.ismodule(value)
    if name != "__version__":
        tree = ast.parse(Path(mpru_tf.__file__).read_text(encoding="utf-8"))
        home = next(
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
        )
        assert home is not None
        assert value is getattr(importlib.import_module(home), name)
        assert value.__doc__


def test_public_names_survive_the_import_of_every_module() -> None:
    """A module that had the name of a public function would take its place once something imports it."""
    modules = {module.name for module in pkgutil.iter_modules([str(PACKAGE)])}
    assert not modules & set(mpru_tf.__all__)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'unlearn'"):
        mpru_tf.unlearn  # noqa: B018


def test_every_error_is_public_and_below_the_root() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found <= set(mpru_tf.__all__)
    assert all(issubclass(getattr(errors, name), errors.MPRUError) for name in found)


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split("──")[1].split()[0] for line in errors.__doc__.splitlines() if "──" in line} | {"MPRUError"}
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert drawn == found


def test_explain_is_one_paragraph() -> None:
    message = errors.explain("It is wrong.", received=3, valid="4 or 5", hint="Take 4.")
    assert message == "It is wrong. Received: 3. Valid: 4 or 5. Take 4."
    assert errors.explain("It is wrong.") == "It is wrong."


def test_no_module_raises_what_nobody_can_catch_by_its_kind() -> None:
    """What is refused has a place in the tree of errors; a bare ValueError has none."""
    vague = {"Exception", "BaseException", "ValueError", "RuntimeError", "NotImplementedError", "AssertionError"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                assert ast.unparse(raised) not in vague, f"{path.name}:{node.lineno}"
