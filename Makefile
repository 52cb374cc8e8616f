# `make bench` runs the main job, `make test` the tests; each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
SOURCES := $(shell find hmc_fast kernels bench -name '*.py' -o -name '*.j2') pyproject.toml

.PHONY: bench test clean

bench: $(VENV)/installed
	$(VENV)/bin/hmc-fast bench

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	cd tests && ../$(VENV)/bin/mypy -p hmc_fast --config-file ../pyproject.toml
	cd tests && ../$(VENV)/bin/lint-imports --config ../pyproject.toml
	HMC_FAST_TEST_WHEEL=1 $(VENV)/bin/pytest

$(VENV)/bin/python:
	sh scripts/make_venv.sh $(PYTHON) $(VENV)

# The built wheel is installed, so that what is tested is what users get.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	rm -rf build dist
	$(VENV)/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	$(VENV)/bin/pip install --quiet "$$(ls dist/*.whl)"
	$(VENV)/bin/pip install --quiet --no-deps --force-reinstall dist/*.whl
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet "$$(ls dist/*.whl)[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist
