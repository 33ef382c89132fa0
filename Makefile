# `make demo` and `make test` install all that they need; `make help` lists the other targets.
# With TORCH=2.11.0 each target uses that PyTorch version, in a separate environment.
PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-torch$(TORCH))
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS = constraints/py$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
# If it is set, as in many container images, every process compiles all modules that it imports: 8 s more for Composer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo demo-signals test test-fast test-slow test-gpu check parity chaos bench bench-gpu docs docs-serve test-docs format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv with the project and its pinned dependencies (several GB, a few minutes); TORCH=2.11.0 uses that PyTorch

$(INSTALLED): pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python {v[0]}.{v[1]} found, 3.11 or 3.12 expected (3.10 reached its end of life in October 2026): make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[dev]'
else
# mosaicml requires torch<2.7.1, so pip can resolve only PyTorch with its own dependencies; the rest uses --no-deps.
	grep -vE '^(torch|torchvision|triton|nvidia-.*)==' $(CONSTRAINTS) >$(VENV)/constraints.txt
	$(PIP_INSTALL) -c $(VENV)/constraints.txt torch==$(TORCH) torchvision
	$(PIP_INSTALL) --no-deps -r $(VENV)/constraints.txt -e .
endif
	@touch $@

demo: $(INSTALLED)  ## train all three stages on generated data, a few minutes on a laptop's CPU
	$(BIN)/ugt demo

demo-signals: $(INSTALLED)  ## train a model with and one without actions and times, on data in which they matter; minutes on a laptop's CPU
	$(BIN)/ugt demo --law signals

test: $(INSTALLED)  ## run the tests, about twenty minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Folders that train nothing, without what waits for other processes and the file that compiles.
FAST := $(addprefix tests/,catalogue config generation importing losses metrics model storage)

test-fast: $(INSTALLED)  ## run the tests of losses, model, metrics, importing and config, under a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu and not processes' \
		--ignore tests/model/test_compiled_gradients.py $(FAST)

test-slow: $(INSTALLED)  ## run the slow tests, an hour or more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	OMP_NUM_THREADS=1 UGT_TEST_DEVICE=cpu $(BIN)/python -m pytest tests/gpu -m gpu

test-gpu: $(INSTALLED)  ## run the tests that need a GPU, a few minutes
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/gpu tests/kernels -m "not slow" -rs -n 4 --dist worksteal

test-docs: $(INSTALLED)  ## run the commands of every page of the documentation, minutes per page; PAGE=stages for one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs -m pages $(if $(PAGE),-k $(PAGE))

check: $(INSTALLED)  ## lint, formatting and types (ruff, mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(INSTALLED)  ## compare every parallel strategy with one process, and resume each one's checkpoint under every other
	$(BIN)/python -m tests.parity

chaos: $(INSTALLED)  ## kill small runs a hundred times at random, resume them and compare their metrics with an uninterrupted run's
	$(BIN)/python -m tests.chaos

bench: $(INSTALLED)  ## run the CPU benchmarks, each against a baseline; writes benchmarks/RESULTS.md
	@status=0; for script in $(filter-out %/gpu.py %/claims.py %/trained_models.py %/random_rows.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || status=1; done; exit $$status

bench-gpu: $(INSTALLED)  ## run the GPU benchmarks (steps, data, recommendation, kernels, T5) on one GPU, at most six minutes
	$(BIN)/python benchmarks/gpu.py

docs: $(INSTALLED)  ## build the documentation into site/; broken links and anchors are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(INSTALLED)  ## show the documentation on http://127.0.0.1:8000, rebuilt at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: $(INSTALLED)  ## fix lint and formatting with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## delete the demo's output and the built documentation; keeps .venv
	rm -rf demo-run site
