# `make run` and `make test` do all their own set-up; nothing but Python 3.11+ with venv is needed.
PYTHON ?= python3
# Extra words for pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-torch check bench figures doctor reference clean

run: $(READY)
	$(BIN)/netsim run --bandwidth 1gbps --ratio 0.01

# What measures time runs alone; the rest, which waits more than it works, in a few processes at once, the files with
# real ranks first.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: check
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "not alone" $(PARALLEL)

# What runs kernels, with the compiled ones switched off in this process and all that it starts.
test-torch: export NETSIM_KERNELS = torch
test-torch: $(READY)
	$(BIN)/python -m pytest -m "kernels and alone"
	$(BIN)/python -m pytest -m "kernels and not alone" $(PARALLEL)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

# What reports/ has not measured with this version, and the tables of README and docs: hours, on a quiet machine.
figures: $(READY)
	$(BIN)/python reports/figures.py

reference: $(READY)
	$(BIN)/python docs/reference/make.py

doctor: $(READY)
	$(BIN)/netsim doctor

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

# The marker is written last, so that an interrupted install is done again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "netsim needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "this Python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e '.[test]'
	@touch $@
