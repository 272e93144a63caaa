PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
export MPLBACKEND = Agg

.PHONY: demo test lint
demo: .venv/installed
	$(BIN)/python -m workbench.demo

# Two processes of one thread each: with two threads each they would wait for one another.
test: .venv/installed
	$(BIN)/ruff check workbench tests notebooks
	$(BIN)/ruff format --check workbench tests notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 15

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
