# Two commands do all the set-up: `make bench` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: bench redis test check fault campaigns soak bugs clean help

help:            ## what can be made here
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	mkdir -p .typing && ln -sfn .. .typing/trilogue
	tests/support/fetch_redis.sh .venv
	touch $@

redis: $(READY)  ## fetch redis-server and valkey-server for the tests and `bench redis-recipe`, if the set-up could not
	tests/support/fetch_redis.sh .venv

bench: $(READY)  ## set up, then measure the throughput on an embedded Ray, verified
	$(BIN)/trilogue bench throughput

check: $(READY)  ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check      ## set up, check, then every test but the long ones
	$(BIN)/pytest -n auto tests/unit tests/tidy
	$(BIN)/pytest -m "not long" --ignore=tests/unit --ignore=tests/tidy

fault: $(READY)  ## the long runs with real processes
	$(BIN)/pytest -m "long and not longer" --ignore=tests/unit --ignore=tests/tidy

campaigns: $(READY)  ## the long campaigns with stores on Redis: half an hour
	$(BIN)/pytest -m longer tests/fault

soak: $(READY)   ## the simulation until Ctrl-C (SOAK="--seeds 20000", SOAK="--minutes 30")
	$(BIN)/python tests/simulation/soak.py $(SOAK)

bugs: $(READY)   ## plant each known bug in the simulation, and write the table of what finds it
	$(BIN)/python tests/simulation/bug_table.py

clean:           ## remove what make made
	rm -rf .venv .typing build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
