# Every target makes its own environment first: `make PYTHON=python3.12 test` chooses the interpreter,
# and an empty LOCK the newest version of everything: `make PYTHON=python3.13 VENV=.venv313 LOCK= test`.

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder
LOCK ?= requirements.lock
LOCK_FLAGS ?=

bin := $(VENV)/bin
installed := $(VENV)/installed

.PHONY: demo test lint docs check format bench peers bench-peers lock clean newest

# A robust mixture on the embedded digits, from training to table and figures: runs/demo/report.md
# Again it goes on from there, and keeps what has been evaluated; `rm -r runs/demo` begins anew.
demo: $(installed)
	$(bin)/python -m experiments.cifar10_mixture --preset demo --run-dir runs/demo $(if $(wildcard runs/demo),--resume)

# The tests run on forced CPU devices, whatever accelerator there is.
test: export JAX_PLATFORMS ?= cpu
test: $(installed)
	$(bin)/python -m pytest $(PYTEST_FLAGS)

# Needs no network once installed.
lint: $(installed)
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/basedpyright --pythonpath $(bin)/python

# The site, build/docs/index.html, without a network once installed; warnings are errors.
docs: export JAX_PLATFORMS ?= cpu
docs: $(installed)
	$(bin)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs

# What the continuous integration runs.
check: $(installed)
	$(MAKE) --jobs 2 lint docs
	$(MAKE) test

format: $(installed)
	$(bin)/ruff format
	$(bin)/ruff check --fix

# Needs PyTorch: `pip install --constraint requirements.lock --editable '.[bench]'`
bench: $(installed)
	$(bin)/python -m benchmarks.training_step
	$(bin)/python -m benchmarks.attack_throughput
	$(bin)/python -m benchmarks.game_solvers

# Our attacks beside other libraries'. These ask for an old `requests`: an environment of its own.
peers bench-peers: export JAX_PLATFORMS ?= cpu
# Where other programs run as well, PyTorch's threads would wait for each other in a busy loop.
peers bench-peers: export OMP_WAIT_POLICY ?= PASSIVE
peers: .venv-peers/peers
	.venv-peers/bin/python -m pytest -W default tests/peers

bench-peers: .venv-peers/peers
	.venv-peers/bin/python -m benchmarks.attack_peers --network digits
	.venv-peers/bin/python -m benchmarks.attack_peers --network resnet18

.venv-peers/peers: pyproject.toml requirements.lock
	$(MAKE) VENV=.venv-peers .venv-peers/installed
	.venv-peers/bin/python -m pip install --quiet --editable '.[peers]'
	echo 'setuptools<81' > .venv-peers/old.txt # builds visdom, which adversarial-library needs
	PIP_CONSTRAINT=.venv-peers/old.txt PIP_BUILD_CONSTRAINT=.venv-peers/old.txt \
	    .venv-peers/bin/python -m pip install --quiet 'adv-lib>=0.2.8'
	touch $@

# `make lock LOCK_FLAGS=--upgrade` moves to the newest versions.
lock: $(bin)/python
	$(bin)/python -m pip install --quiet uv
	$(bin)/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
	    --no-annotate --custom-compile-command "make lock" \
	    --output-file requirements.lock $(LOCK_FLAGS)

clean:
	rm -rf $(VENV) .venv-peers .cache .pytest_cache .ruff_cache

$(bin)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("mixjax needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Without a lock each call looks for newer versions. Python compiles what is imported, a part of all
# that pip would compile, which takes it half of its time.
$(installed): pyproject.toml $(or $(LOCK),newest) | $(bin)/python
ifeq ($(LOCK),)
	$(bin)/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[test]'
else
	$(bin)/python -m pip install --quiet --no-compile --requirement $(LOCK)
	$(bin)/python -m pip install --quiet --no-deps --editable .
endif
	touch $@
