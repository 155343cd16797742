# A newcomer needs two commands: `make demo` and `make test`. Each sets up .venv first where it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Two files at a time, each on one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help setup demo test test-all lint docs clean

help:
	@echo "make demo      the first edit, on a small model that is trained on the spot (4 minutes, then 1)"
	@echo "make test      the tests and doctests (make test-all: the slow ones too)"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation as a site: build/docs/index.html"
	@echo "make clean     remove .venv and everything generated"

setup: $(READY)

demo: $(READY)
	$(BIN)/editkit demo

test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/python -m editkit_cli.reference docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: the constraint then picks the build of the index in use, not a second one with CUDA.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "editkit needs Python 3.10 or newer, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

.venv/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@
