PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
export MPLBACKEND = Agg

.PHONY: demo test laws types notebook notebooks docs dist figures redraw kills
demo: .venv/installed
	$(BIN)/python -m workbench.studies.demo

# What the package's annotations say, against what it does: a quarter of a minute.
types: .venv/installed
	$(BIN)/python -m mypy

# Two processes of one thread each: with two threads each they would wait for one another.
test: .venv/installed types
	$(BIN)/ruff check workbench tests notebooks docs
	$(BIN)/ruff format --check workbench tests notebooks docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 15

# Every law on every pipeline with every scheduler, and every triple of all other factors; `make laws DEVICE=cuda DTYPE=float16` on a GPU.
laws: .venv/installed
	STRENGTH=3 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal tests/test_laws.py

# Pictures inline, and the hub within reach: what tests must not have.
notebook: .venv/notebook
	env -u MPLBACKEND -u HF_HUB_OFFLINE $(BIN)/jupyter lab notebooks

# Executes those whose code is new; `make notebooks NAMES="02 --again"` the second whatever has changed.
notebooks: .venv/installed
	env -u MPLBACKEND OMP_NUM_THREADS=1 $(BIN)/python notebooks/make.py $(NAMES)

docs: .venv/installed
	$(BIN)/python docs/reference.py

dist: .venv/installed
	$(BIN)/python -m hatchling build --target wheel

# Every committed figure and table, anew: two days of one core, and every study goes on where it was stopped.
figures: .venv/installed
	$(BIN)/python -m workbench.studies.demo --out figures/demo/zebra_trace.png
	$(BIN)/python -m workbench.studies.survey --out figures/causal_trace
	$(BIN)/python -m workbench.studies.agreement --out figures/localizers
	$(BIN)/python -m workbench.studies.attribution --out figures/attribution
	$(BIN)/python -m workbench.studies.planted --out figures/planted
	$(BIN)/python -m workbench.studies.coverage --out figures/coverage
	$(BIN)/python -m workbench.studies.looking --out figures/attention
	$(BIN)/python -m workbench.studies.concept_maps --out figures/attention
	$(BIN)/python -m workbench.studies.winter --out figures/winter
	$(BIN)/python -m workbench.studies.swap --tune --out figures/swap
	$(BIN)/python -m workbench.studies.swap --out figures/swap
	$(BIN)/python -m workbench.studies.swap_fresh --out figures/swap
	$(BIN)/python -m workbench.studies.swap_rank --out figures/swap_rank
	$(BIN)/python -m workbench.studies.erase --out figures/erase
	$(BIN)/python -m workbench.studies.erase_grid --out figures/erase
	$(BIN)/python -m workbench.studies.compose --out figures/compose
	$(BIN)/python -m workbench.studies.timed --out figures/timed
	$(BIN)/python -m workbench.studies.windows --localizers figures/localizers/localizers.csv --out figures/windows
	$(BIN)/python -m workbench.studies.edit_tasks --out figures/edit_tasks
	$(BIN)/python -m workbench.studies.architectures --out figures/architectures
	$(BIN)/python -m workbench.studies.edit_speed --out figures/edit_speed/edit_speed.csv
	$(BIN)/python -m workbench.studies.prompt_to_prompt --out figures/prompt_to_prompt
	OMP_NUM_THREADS=1 $(BIN)/python -m workbench.studies.speed --out figures/speed/speed_1.csv
	OMP_NUM_THREADS=2 $(BIN)/python -m workbench.studies.speed --out figures/speed/speed_2.csv
	$(BIN)/python -m workbench.studies.memory --out figures/memory/memory.csv
	$(BIN)/python -m workbench.studies.cost
	$(BIN)/python -m workbench.studies.matrix --out figures/matrix
	$(BIN)/python -m workbench.menagerie.evaluate --out figures/menagerie

# The same pictures from the committed tables, measuring nothing: some minutes of one core. Of one study: its line alone.
redraw: .venv/installed
	$(BIN)/python -m workbench.studies.demo --redraw --out figures/demo/zebra_trace.png
	$(BIN)/python -m workbench.studies.survey --redraw --out figures/causal_trace
	$(BIN)/python -m workbench.studies.agreement --redraw --out figures/localizers
	$(BIN)/python -m workbench.studies.attribution --redraw --out figures/attribution
	$(BIN)/python -m workbench.studies.planted --redraw --out figures/planted
	$(BIN)/python -m workbench.studies.coverage --redraw --out figures/coverage
	$(BIN)/python -m workbench.studies.looking --redraw --out figures/attention
	$(BIN)/python -m workbench.studies.winter --redraw --out figures/winter
	$(BIN)/python -m workbench.studies.swap --redraw --out figures/swap
	$(BIN)/python -m workbench.studies.swap_fresh --redraw --out figures/swap
	$(BIN)/python -m workbench.studies.swap_rank --redraw --out figures/swap_rank
	$(BIN)/python -m workbench.studies.erase_grid --redraw --out figures/erase
	$(BIN)/python -m workbench.studies.windows --redraw --out figures/windows
	$(BIN)/python -m workbench.studies.architectures --redraw --out figures/architectures
	$(BIN)/python -m workbench.studies.prompt_to_prompt --redraw --out figures/prompt_to_prompt
	$(BIN)/python -m workbench.studies.matrix --redraw --out figures/matrix

# Studies killed at a hundred random moments, on a disk and in an S3 server at twenty, and workers at twenty, lose nothing: twenty minutes.
kills: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_many.py --kills 100
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_many.py --kills 20 --s3
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_workers.py --kills 20

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/notebook: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[notebook]'
	touch $@
