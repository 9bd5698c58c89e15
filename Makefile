# Every target sets itself up: a virtual environment in .venv, then the work. PYTHON chooses the interpreter.
PYTHON ?= python3
TORCH := torch==2.13.0
# Threads that wait without spinning: on a busy machine the networks here are ten times faster for it.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-host check bench paper-tables clean

demo: .venv/demo
	.venv/bin/ipro demo

test: .venv/test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --dist loadfile

# The tests in a real ComfyUI: $COMFYUI_DIR, the host that the pack is installed in, or ~/ComfyUI. A checkout that is
# named has an environment of its own, because hosts want different packages.
HOST_VENV := .venv-host$(addprefix -,$(notdir $(patsubst %/,%,$(COMFYUI_DIR))))

test-host: $(HOST_VENV)/ready
	IPRO_HOST_WANTED=1 $(HOST_VENV)/bin/python -m pytest -q -m host

bench: .venv/demo
	.venv/bin/ipro bench
	.venv/bin/ipro bench --size moderate
	.venv/bin/ipro bench --count

# The paper's tables in miniature; goes on where it was broken off.
paper-tables: .venv/demo
	.venv/bin/ipro paper-tables

check: .venv/test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath .venv/bin/python

clean:
	rm -rf .venv .venv-host*

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test: .venv/demo
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

# The host's packages beside a CPU build of torch; torchvision and torchaudio have none, and Wan needs neither. Its page
# is driven by playwright, where there is a chromium.
$(HOST_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(HOST_VENV)
	$(HOST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	grep -vxE 'torch(vision|audio)?' "$$($(PYTHON) tests/host.py)/requirements.txt" > $(HOST_VENV)/requirements.txt
	$(HOST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) requests playwright \
		-r $(HOST_VENV)/requirements.txt --editable ".[test]"
	$(HOST_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	touch $@
