# Everything a checkout needs, from a machine that has Python (3.11 or newer, with venv) and a package index.
#
# The environment lives in .venv and is made on first use, and again when pyproject.toml changes. Nothing here uses
# the network but pip. Variables:
#   PYTHON=/path/to/python   the interpreter to make .venv with     (default: the newest suitable one on the PATH)
#   ARGS="..."               passed on to pytest, bench or the demo (make test ARGS="-k wait -x")

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of the pure layers: no processes, hence quick enough for every change.
CORE_TESTS := tests/layers tests/core tests/sim tests/wire tests/serial
PYTEST := $(BIN)/python -m pytest

say = @printf '\033[1m==>\033[0m %s\n' $(1)

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## train CartPole-v1 by evolution strategies on all CPUs, and draw the learning curve
	@$(BIN)/python -m examples.evolution_strategies $(ARGS)

.PHONY: test
test: $(READY) ## every test, with the stress tests bounded (ARGS="--stress-seconds=60" for longer ones)
	$(call say,'tests')
	@$(PYTEST) $(ARGS)

.PHONY: check
check: format-check lint types core-tests ## format, lint, strict types, layer order, core tests; under a minute

.PHONY: format-check lint types core-tests
format-check: $(READY)
	$(call say,'format')
	@$(BIN)/ruff format --check --quiet . || { echo 'The files above are not formatted: run `make format`.' >&2; exit 1; }

lint: $(READY)
	$(call say,'lint')
	@$(BIN)/ruff check --quiet .

types: $(READY)
	$(call say,'types')
	@$(BIN)/mypy

core-tests: $(READY)
	$(call say,'layer order and core tests')
	@$(PYTEST) -q $(CORE_TESTS)

.PHONY: format
format: $(READY) ## format the tree, and mend what the linter can mend safely
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only .

.PHONY: bench
bench: $(READY) ## compare with Ray and multiprocessing.Pool in one run; writes JSON and Markdown
	@$(BIN)/python -m bench $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## random histories of all machines for SHOAL_FUZZ_SECONDS (600); failing seeds are kept
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: week
week: $(READY) ## a million tasks, 200,000 large objects, killed borrowers, then five idle minutes; see docs/endurance.md
	@$(BIN)/python -m tests.stress.week $(ARGS)

.PHONY: sim
sim: $(READY) ## simulate clusters of 100, 1,000 and 10,000 nodes; what it prints is explained in docs/scale.md
	@$(BIN)/python -m sim $(ARGS)

.PHONY: install
install: $(READY) ## make .venv with shoal (editable) and everything that the other commands need

.PHONY: clean
clean: ## remove .venv, caches and built files
	rm -rf $(VENV) .venv-ray .venv.lock build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first of the candidates that really runs, is new enough and can make environments: a name on the PATH may be a
# version manager's shim with no interpreter behind it, and some systems ship Python without venv. Of an activated
# environment (perhaps .venv itself, about to be cleared) the interpreter that it was made with is taken.
define find_python
probe='import sys, ensurepip, venv; print(sys._base_executable); sys.exit(sys.version_info < (3, 11))'; \
found=; tried='$(if $(PYTHON),$(PYTHON),python3.14 python3.13 python3.12 python3.11 python3 python)'; \
for candidate in $$tried; do \
	if found=$$("$$candidate" -c "$$probe" 2>/dev/null); then break; fi; \
done; \
if ! "$${found:-false}" -c "$$probe" >/dev/null 2>&1; then \
	{ echo "shoal needs Python 3.11 or newer with the modules venv and ensurepip, and none of these is that: $$tried"; \
	for candidate in $$tried; do \
		version=$$("$$candidate" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true); \
		command -v "$$candidate" >/dev/null && echo "  $$candidate: $${version:-does not run}" || echo "  $$candidate: not found"; \
	done; \
	echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 ..."; \
	} >&2; exit 1; \
fi
endef

# The lock lets two makes start at once in one checkout: the second finds the work done. (macOS has no flock; there the
# two must not overlap.) The stamp is written last, so that a broken installation is done again, from an empty folder.
$(READY): pyproject.toml
	@exec 9>.venv.lock; if command -v flock >/dev/null; then flock 9; fi; \
	if [ -e $@ ] && [ ! pyproject.toml -nt $@ ]; then exit 0; fi; \
	$(find_python); \
	printf '\033[1m==>\033[0m %s\n' "environment in $(VENV), with $$("$$found" --version) (takes a minute)"; \
	"$$found" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'; \
	touch $@
