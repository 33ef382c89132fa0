# `make demo` and `make test` set up all that they need; `make help` lists the rest.
# With TORCH=2.11.0 each of them uses that PyTorch, in an environment of its own.
PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-torch$(TORCH))
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Where it is set, as in many container images, every process compiles all that it imports: 8 s more for Composer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow test-gpu check parity chaos bench bench-gpu format clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## .venv with the project and its exact dependencies (several GB, a few minutes); TORCH=2.11.0: with that PyTorch

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python {v[0]}.{v[1]} found, 3.11 or 3.12 expected: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
else
# mosaicml requires torch<2.7.1, so nothing but PyTorch and what it needs itself can be resolved.
	grep -vE '^(torch|torchvision|triton|nvidia-.*)==' constraints.txt >$(VENV)/constraints.txt
	$(PIP_INSTALL) -c $(VENV)/constraints.txt torch==$(TORCH) torchvision
	$(PIP_INSTALL) --no-deps -r $(VENV)/constraints.txt -e .
endif
	@touch $@

demo: $(INSTALLED)  ## all three stages on embedded data, a few minutes on a laptop's CPU
	$(BIN)/python -m ugt_composer.demo.run

test: $(INSTALLED)  ## the tests, about seven minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)  ## the tests that take longer, about 25 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	OMP_NUM_THREADS=1 UGT_TEST_DEVICE=cpu $(BIN)/python -m pytest tests/gpu -m gpu

test-gpu: $(INSTALLED)  ## the tests for a machine with a GPU, a few minutes
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/gpu -m gpu -rs -n 4 --dist worksteal

check: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(INSTALLED)  ## every strategy against one process, and each one's checkpoint under each other
	$(BIN)/python benchmarks/parity.py

chaos: $(INSTALLED)  ## a hundred random kills of small runs, and what they record afterwards
	$(BIN)/python benchmarks/chaos.py

bench: $(INSTALLED)  ## the measured claims, each against its rival
	@status=0; for script in $(filter-out %/parity.py %/gpu.py %/chaos.py %/claims.py %/trained_models.py %/random_rows.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || status=1; done; exit $$status

bench-gpu: $(INSTALLED)  ## training steps, recommendation and kernels on one GPU, about six minutes
	$(BIN)/python benchmarks/gpu.py

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## delete what the demo wrote; .venv stays
	rm -rf demo-run
