# `make bench` runs the main job, `make test` the tests, `make study DATA=... WEIGHTS=...` the seven models;
# each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
SOURCES := $(shell find hmc_fast kernels bench export -name '*.py' -o -name '*.j2') pyproject.toml

# Tests of a file stay in one process: they share what is slow to make. Benchmarks run alone.
TEST_PROCESSES := 2
PYTEST := $(VENV)/bin/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

.PHONY: bench study test readme-table clean

bench: $(VENV)/installed
	$(VENV)/bin/hmc-fast bench

study: $(VENV)/installed
	sh scripts/study.sh "$(DATA)" "$(WEIGHTS)"

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	cd tests && ../$(VENV)/bin/mypy -p hmc_fast --config-file ../pyproject.toml
	cd tests && ../$(VENV)/bin/lint-imports --config ../pyproject.toml
	HMC_FAST_TEST_WHEEL=1 OMP_NUM_THREADS=1 $(PYTEST) --ignore=tests/kernels/interpreter --ignore=tests/benchmarks
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) tests/kernels/interpreter
	$(VENV)/bin/pytest tests/benchmarks

# The record of the speed targets that the README shows; without one the table says so.
TARGETS_RECORD := $(firstword $(wildcard bench/results/targets-*.jsonl))

readme-table: $(VENV)/installed
	$(VENV)/bin/python -P -m hmc_fast.bench.readme_table README.md $(TARGETS_RECORD)

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
