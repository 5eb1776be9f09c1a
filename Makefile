# Thin: each target is a line or two. `make demo` and `make test` need only Python 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH ?= scheduler
PROTO := niyama/v1/inference.proto

.PHONY: demo test lint proto bench paper install develop clean help

demo: install            ## set up, stream a story, send chat behind a batch under fcfs and niyama
	@$(BIN)/python -m loadgen.demo

test: develop            ## set up, run every test, two files at a time (most wait for a process to start), in their order
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: develop            ## ruff, its format, and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

proto: develop           ## regenerate the stubs of proto/, which lie in client/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=client --pyi_out=client --grpc_python_out=client $(PROTO)

bench: develop           ## BENCH=NAME picks another; `python -m tests.bench` lists them
	$(BIN)/python -m tests.bench $(BENCH)

paper: install           ## the papers' evaluation in simulation: half an hour on 2 cores (PAPER_ARGS=--quick)
	$(BIN)/python -m loadgen.paper $(PAPER_ARGS)

install: $(VENV)/.installed     ## what it takes to run
develop: $(VENV)/.developing    ## and to test

$(VENV)/.installed: setup.cfg pyproject.toml client/pyproject.toml
	@$(PYTHON) -m deploy.install $(VENV) hf
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	@$(PYTHON) -m deploy.install $(VENV) dev,hf
	@touch $@

help:                    ## what there is to make
	@grep -h '##' $(MAKEFILE_LIST) | grep -v grep | sed 's/:[^#]*## /: /'

clean:                   ## remove the environment and what was built in it
	rm -rf $(VENV) demo-report build *.egg-info client/build client/*.egg-info
