# Every target makes the environment first; when nothing has changed that costs milliseconds.
.DEFAULT_GOAL := help
.PHONY: help install demo test mutate bench docs lint dist clean
BIN := .venv/bin

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install:  ## make .venv and install everything for development
	@scripts/setup.sh dev,docs

demo:  ## install, then the main job: a robot, an image generator and a language model, each improved by reward
	@scripts/setup.sh demo
	@$(BIN)/denoiserl demo $(ARGS)

test: install  ## install, then lint, types, documentation and all tests (ARGS="-k chain -x" goes to pytest)
	@scripts/test.sh $(ARGS)

mutate: install  ## plant mistakes in a file and list those that no test sees (ARGS=src/denoiserl/recipes/off_policy/sac.py)
	@$(BIN)/python scripts/mutate.py $(ARGS)

bench: install  ## speed against the floor: the bare network called K times
	@$(BIN)/python -m benchmarks.run $(ARGS)

docs: install  ## build the documentation into site/
	@scripts/docs.sh $(ARGS)
	@echo "open site/index.html"

lint: install  ## format, fix what can be fixed, check types
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

dist: install  ## build wheel and sdist into dist/, and try the wheel in an empty environment
	@scripts/dist.sh

clean:  ## remove the environment and everything built; runs/ stays
	@rm -rf .venv site build dist .pytest_cache .ruff_cache .hypothesis
