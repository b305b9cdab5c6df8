# Two commands on a fresh machine: `make demo` and `make test`. Needs python3 (>= 3.11) and git.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export GENREC_HOME := $(CURDIR)
export GENREC_TEST_ARTEFACTS ?= $(CURDIR)/reports/test-artefacts
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install demo test crash lint clean

help:
	@echo "make demo   one whole night on an embedded data set, a few minutes after installation"
	@echo "make test   the tests"
	@echo "make crash  kill a night at every step and at random moments; writes docs/crash-matrix.md"
	@echo "make lint   ruff"
	@echo "make clean  remove what runs made (not .venv)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python && echo "reusing $(VENV)" || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/genrec demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest

crash: $(STAMP)
	$(VENV)/bin/python -m tests.crash

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf data prepared artefacts var reports workspaces .dvc/cache .dvc/tmp
	find mlruns -mindepth 1 -not -name .gitignore -delete
