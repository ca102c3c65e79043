# Two commands do all set-up on a bare machine: `make quickstart` runs the main job, `make test` passes the tests.
# Each makes .venv on first use. Another interpreter: make PYTHON=/path/to/python3.11 test

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart_output
TESTS ?= tests
# Each process imports TensorFlow: more of them would cost memory rather than save time.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
# What lint looks at.
SOURCES := setup.py mpru_tf export_scripts benchmarks tests

# The first interpreter that really runs (a version manager's shim may exist and fail), has venv and pip, and is in the
# range that setup.py names. Only asked for when .venv is made.
FIND_PYTHON = for candidate in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.10 python3 python); do \
	if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' \
		>/dev/null 2>&1; then echo "$$candidate"; break; fi; done

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-servers test-tfdf fuzz lint format bench bench-serving bench-trees experiment zoo wheel clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/.installed-report ## train, serve, forget a class while clients ask, and show it (OUT=folder)
	@$(BIN)/mpru-tf quickstart --out "$(OUT)"

test: $(VENV)/.installed-test ## run the tests (TESTS=tests/test_labels.py for some of them)
	$(BIN)/python -m pytest $(IN_PARALLEL) $(TESTS)

test-servers: $(VENV)/.installed-test ## only those of running servers: `mpru-tf serve`, tensorflow_model_server if there is one
	$(BIN)/python -m pytest tests/integration

# TensorFlow Decision Forests wants TensorFlow 2.19.0 exactly, so it has an environment of its own.
TFDF_VENV := .venv-tfdf
test-tfdf: ## run the tests that need TensorFlow Decision Forests, in an environment of their own
	@$(MAKE) --no-print-directory VENV=$(TFDF_VENV) '$(TFDF_VENV)/.installed-trees,test'
	$(TFDF_VENV)/bin/python -m pytest tests/trees/test_tfdf_backend.py tests/trees/test_tfdf_models.py \
	tests/test_export_tfdf.py

fuzz: $(VENV)/.installed-test ## try damaged models: N=20000 of them, from seed START=0 on
	PYTHONPATH=. $(BIN)/python tests/fuzzing.py --count "$(or $(N),1000)" --start "$(or $(START),0)"

lint: $(VENV)/.installed-test ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.installed-test ## let ruff mend what it can
	$(BIN)/ruff check --fix --exit-zero $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.installed-test ## measure the re-export (and CIFAR10_MODEL=a.keras CIFAR10_DATA=b.npz, if given)
	$(BIN)/python benchmarks/reexport.py
	$(if $(and $(CIFAR10_MODEL),$(CIFAR10_DATA)),$(BIN)/python benchmarks/cifar10_forget.py --model "$(CIFAR10_MODEL)" \
	--data "$(CIFAR10_DATA)")

bench-serving: $(VENV)/.installed-test ## 100,000 requests over 20 swaps, and request rates (SERVER=tensorflow_model_server)
	$(BIN)/python benchmarks/hot_swap.py $(if $(SERVER),--server "$(SERVER)" --out build/hot_swap.json)
	$(BIN)/python benchmarks/serving_rate.py $(if $(SERVER),--server "$(SERVER)" --out build/serving_rate.json)

bench-trees: ## measure converted trees against XGBoost, TF-DF and treelite (COVERTYPE=file.npz, or downloaded)
	@$(MAKE) --no-print-directory VENV=$(TFDF_VENV) '$(TFDF_VENV)/.installed-trees,bench'
	$(TFDF_VENV)/bin/python benchmarks/trees.py $(if $(COVERTYPE),--data "$(COVERTYPE)")

experiment: $(VENV)/.installed-test ## train with and without classes, compare (DATASET=covertype DATA=file.npz TRAINING=...)
	@if [ -z "$(DATASET)" ]; then echo "make experiment wants DATASET=covertype, cifar10 or cifar100" >&2; exit 2; fi
	$(BIN)/python benchmarks/experiments.py $(DATASET) --answers "$(or $(ANSWERS),build/$(DATASET))" \
	$(if $(DATA),--data "$(DATA)") $(TRAINING)

zoo: $(if $(ZOO),$(VENV)/.installed-test) ## forget each class of every model of a directory in turn (ZOO=folder)
	@if [ -z "$(ZOO)" ]; then \
		echo "make zoo wants a directory of SavedModels, laid out as NAME/VERSION: make zoo ZOO=path/to/models" >&2; \
		exit 2; \
	fi
	$(BIN)/python benchmarks/zoo.py "$(ZOO)"

wheel: $(VENV)/.installed-test ## build the wheel, and see that what is in it works
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target build/installed dist/*.whl
	cd build/installed && PYTHONPATH=. "$(abspath $(BIN))/python" -c 'import mpru_tf, mpru_tf.cli, pathlib; \
		mpru_tf.cli.hush_tensorflow(); \
		found = pathlib.Path(mpru_tf.__file__).resolve().parent; \
		assert found == pathlib.Path("mpru_tf").resolve(), found; \
		assert (found / "py.typed").is_file() and (found / "quickstart_client.py").is_file(); \
		[getattr(mpru_tf, name) for name in mpru_tf.__all__]; mpru_tf.cli.main()' --version

clean: ## remove what make made, .venv included
	rm -rf $(VENV) $(TFDF_VENV) build dist *.egg-info quickstart_output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/.made:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
		echo "No usable Python found: mpru_tf needs Python 3.10, 3.11 or 3.12 with the modules venv and ensurepip" >&2; \
		echo "(on Debian and Ubuntu: apt install python3-venv). Tried: $(if $(PYTHON),$(PYTHON),python3.12 python3.11 \
	python3.10 python3 python). Name one with: make PYTHON=/path/to/python3.11 $(firstword $(MAKECMDGOALS))" >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	rm -rf "$(VENV)" && "$$python" -m venv "$(VENV)"
	@touch $@

$(VENV)/.installed-%: $(VENV)/.made setup.py pyproject.toml
	@echo "installing TensorFlow and what else mpru_tf[$*] needs into $(VENV): some minutes, about 3 GB"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@
