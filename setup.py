"""Metadata and dependencies of mpru_tf; each pin has its reason beside it. Tools are configured in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The one place where the version is written is mpru_tf/__init__.py; read it without importing the package."""
    source = (HERE / "mpru_tf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('mpru_tf/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


CORE = [
    # 2.19 is the version TF-DF is built for (extra `trees`); 2.21 is the newest one that the tests pass with.
    "tensorflow>=2.19,<2.22",
    # The gRPC messages of TensorFlow Serving. Each release asks for a TensorFlow at least as new as itself.
    "tensorflow-serving-api>=2.19,<2.22",
    # TensorFlow 2.19 requires numpy < 2.2; with newer ones the same range is what is tested.
    "numpy>=1.26,<2.2",
    # TensorFlow 2.19 is content with 3.5; 3.6 is the first whose Model.export can be told to be quiet.
    "keras>=3.6",
    # gRPC arrives with TensorFlow as well; it is named because we import it.
    "grpcio>=1.62,<2",
    # Requests of `mpru-tf serve` that come as JSON: an image is 150,000 numbers.
    "orjson>=3.10",
    # The command line. With older ones, the help of arguments is lost under click 8.5; 0.29 brings a click of its own.
    "typer>=0.20",
    "rich>=13.7",
]

REPORT = [
    # Pictures of the quick start and of the reports, and the digits data that the quick start trains on.
    # matplotlib before 3.10.7 warns with each import beside pyparsing 3.3.
    "matplotlib>=3.10.7",
    "scikit-learn>=1.4",
]

TREES = [
    # TF-DF 1.12.0 is the last release. It requires exactly TensorFlow 2.19.0 and tf_keras ~= 2.19, and
    # tensorflow-serving-api 2.19.1 wants TensorFlow >= 2.19.1: 2.19.0 is the only one that fits beside it.
    "tensorflow-decision-forests==1.12.0",
    "tensorflow==2.19.0",
    "tensorflow-serving-api==2.19.0",
    "tf_keras>=2.19,<2.20",
    # TF-DF imports ydf; ydf 0.16 wants protobuf 6, TensorFlow 2.19 wants protobuf < 6.
    "ydf<0.16",
    # The same module as `xgboost`, which on Linux drags in 700 MB of NCCL that nothing here uses.
    "xgboost-cpu>=2.1",
]

BEAM = ["apache-beam>=2.77,<3"]
SIGNING = ["model-signing>=1.1,<2"]

BENCH = [
    *REPORT,
    # What converted trees are measured against; compiling needs a C compiler.
    "treelite>=4.1",
    "tl2cgen>=1.0",
]

TEST = [
    *REPORT,
    # The old Keras must be able to load what we write, filtered: one of the doors that the tests try.
    "tf_keras>=2.19,<2.22",
    # Converted trees are held against XGBoost itself.
    "xgboost-cpu>=2.1",
    # serving_configs/ is held against Kubernetes' own schemas, which it carries (no network), and against small ones,
    # with the jsonschema and PyYAML that it brings.
    "kubernetes-validate>=1.31",
    "pytest>=8.2",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.8",
    "mypy>=1.13",
    "build>=1.2",
]


def merged(*groups: list[str]) -> list[str]:
    return list(dict.fromkeys(requirement for group in groups for requirement in group))


setup(
    name="mpru_tf",
    version=read_version(),
    description="Make a model served by TensorFlow Serving forget classes: the next version, in well under a second",
    long_description=read_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="machine unlearning, TensorFlow Serving, SavedModel, output filter, MPRU",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # TensorFlow 2.19 has wheels for Python 3.9 to 3.12; 3.9 has reached its end of life.
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["mpru_tf", "mpru_tf.*"]),
    package_data={"mpru_tf": ["py.typed"]},
    install_requires=CORE,
    extras_require={
        "report": REPORT,
        "trees": TREES,
        "beam": BEAM,
        "signing": SIGNING,
        "bench": BENCH,
        "test": TEST,
        "all": merged(REPORT, TREES, BEAM, SIGNING, TEST),
    },
    entry_points={"console_scripts": ["mpru-tf = mpru_tf.cli:main"]},
)
