# Every target sets up what it needs by itself: all it asks of the machine is Python 3.11 or newer.
# PYTHON=/path/to/python chooses the interpreter; else the newest one on the PATH is taken.
# `test` and `check` need Redis 7, PostgreSQL 13 and PgBouncer besides, or newer ones. They install what is missing, if
# they may (as root with apt-get, or with Homebrew), and say what to do otherwise; they start servers of their own.

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs changelog clean venv

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## Watch real work go through a durable queue, with a worker's process killed on the way
	@scripts/venv .venv cli
	@.venv/bin/ferryman demo

test: ## Run everything: the checks, the end-to-end tests, the examples, a second Python if there is one
	@scripts/test

check: ## Format, lint, types, imports and the fast tests, in a few minutes
	@scripts/check

bench: ## Measure speed and memory, beside the floors of this very machine
	@scripts/venv .venv cli
	@.venv/bin/ferryman bench

docs: ## Write the generated parts of docs/ anew
	@scripts/venv .venv dev
	@.venv/bin/python scripts/state_diagram.py
	@.venv/bin/python scripts/reference_pages.py

changelog: ## Collect the fragments of changelog.d/ into CHANGELOG.md
	@scripts/venv .venv dev
	@.venv/bin/python scripts/collect_changelog.py

clean: ## Remove what the other targets made, the virtual environments included
	@rm -rf .venv .venv-second .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@scripts/venv .venv dev
