# Everything from nothing but python3 (3.11 to 3.13) and make. The environment is .venv.
#
#   make demo     the main job: worlds, search, cubes, samples, training, embedding, report.html
#   make test     the tests
#   make check    lint, format and types
#   make bench    asv, quick          make docs     the executed documentation
#   make clean    remove environments, caches and what the demo wrote
#
# PYTHON=python3.12 chooses an interpreter; TORCH="torch --index-url ..." chooses a torch build;
# DEMO="--quick --out /elsewhere" and PYTEST="-k stac" pass arguments on.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
DEMO ?=
PYTEST ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: venv demo test check bench docs clean
.DEFAULT_GOAL := venv

venv: $(READY)

# torch goes first and alone: its wheel is by far the largest, and a build chosen by TORCH= must
# not be replaced by the resolver afterwards.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    "DeepSentinel needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): torch first (a few minutes, once)"
	$(PIP) -c constraints.txt $(TORCH)
	@echo "setting up $(VENV): everything else"
	$(PIP) -c constraints.txt \
	    -e '.[learn,demo,fast,bench,dev,planetary-computer]'
	@touch $@

demo: $(READY)
	$(BIN)/deepsentinel demo $(DEMO)

# Bars of speed by themselves first; then the rest, two files at a time, one thread of BLAS each. No
# test left by PYTEST="-k ..." (pytest's exit 5) is no failure of that half.
test: $(READY)
	$(BIN)/python -m pytest -m "alone and not gpu" $(PYTEST) || [ $$? = 5 ]
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone and not gpu" $(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	cd benchmarks && ../$(BIN)/asv machine --yes >/dev/null && \
	    ../$(BIN)/asv run --quick --show-stderr --python=same

docs: $(READY)
	$(BIN)/python -m pytest tests/test_docs.py $(PYTEST)

clean:
	rm -rf $(VENV) .venv313 .venvpgstac build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
