# `make demo` and `make test` need python3, GCC and a package index, and install all else into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints-ci.txt $(shell find csrc -type f)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints-ci.txt --editable
DEMO_RUN := runs/demo
DEMO_MINUTES ?= 2

# The CUDA kernels take minutes to compile: only for machines that can run them. CONTRIBUTING.md says more.
export FUSEDLSTM_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)

.PHONY: demo test smoke lint bench gpu clean

demo: $(VENV)/library
	rm -rf $(DEMO_RUN)
	$(BIN)/fusedlstm train --out $(DEMO_RUN) --minutes $(DEMO_MINUTES)
	$(BIN)/fusedlstm sample $(DEMO_RUN) --length 600

test: $(VENV)/tools
	$(BIN)/pytest

smoke: $(VENV)/tools
	$(BIN)/python -m benchmarks.smoke

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -type f) $(wildcard tests/cuda_on_cpu/*.h tests/cuda_on_cpu/*.cu)

bench: $(VENV)/tools
	$(BIN)/python -m benchmarks.bench_layer
	$(BIN)/python -m benchmarks.bench_layer --busy
	$(BIN)/python -m benchmarks.bench_train
	$(BIN)/python -m benchmarks.bench_sample
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU, as it is: no network, no environment. GPU="--only layer --shapes 2x512" runs a part.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

clean:
	rm -rf $(VENV) build dist *.egg-info fusedlstm/_C*.so

# Stamps: an install is repeated when what it was made from has changed.
$(VENV)/library: $(SOURCES) | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/tools: $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[lint,test]'
	touch $@ $(VENV)/library

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
