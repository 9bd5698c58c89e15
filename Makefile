# Every target sets itself up: a virtual environment in .venv, then the work. PYTHON chooses the interpreter.
PYTHON ?= python3
TORCH := torch==2.13.0
# Threads that wait without spinning: on a busy machine the networks here are ten times faster for it.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test check bench clean

demo: .venv/demo
	.venv/bin/ipro demo

test: .venv/test
	.venv/bin/python -m pytest -q

bench: .venv/demo
	.venv/bin/ipro bench
	.venv/bin/ipro bench --size moderate
	.venv/bin/ipro bench --count

check: .venv/test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath .venv/bin/python

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test: .venv/demo
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@
