PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
export MPLBACKEND = Agg

.PHONY: demo test types figures kills
demo: .venv/installed
	$(BIN)/python -m workbench.studies.demo

# What the package's annotations say, against what it does: a quarter of a minute.
types: .venv/installed
	$(BIN)/python -m mypy

# Two processes of one thread each: with two threads each they would wait for one another.
test: .venv/installed types
	$(BIN)/ruff check workbench tests notebooks
	$(BIN)/ruff format --check workbench tests notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 15

# Every committed figure and table, anew: a day of one core, and every study goes on where it was stopped.
STUDIES := survey agreement looking swap windows edit_tasks winter prompt_to_prompt
figures: .venv/installed
	$(BIN)/python -m workbench.studies.demo --out figures/zebra_trace.png
	for study in $(STUDIES); do $(BIN)/python -m workbench.studies.$$study --out figures || exit 1; done
	$(BIN)/python -m workbench.studies.swap --tune --out figures
	$(BIN)/python -m workbench.menagerie.evaluate --out figures
	for study in speed memory edit_speed; do $(BIN)/python -m workbench.studies.$$study --out figures/$$study.csv || exit 1; done
	$(BIN)/python -m workbench.studies.speed --studies LocoGen --out figures/speed_locogen.csv

# Studies killed at a hundred random moments lose nothing: a quarter of an hour.
kills: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_many.py --kills 100

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
