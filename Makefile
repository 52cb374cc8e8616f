# `make bench` runs the main job, `make test` the tests, `make test-systems` the slow ones, `make study DATA=...
# WEIGHTS=...` the seven models; each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
SOURCES := $(shell find hmc_fast kernels bench export -name '*.py' -o -name '*.j2' -o -name '*.json' -o -name '*.cpp' -o -name '*.h') pyproject.toml setup.py

# Tests of a file stay in one process where they share what is slow to make. Speed tests run alone.
TEST_PROCESSES := 2
PYTEST := $(VENV)/bin/pytest
IN_PARALLEL := --numprocesses $(TEST_PROCESSES) --dist loadfile

# What is tested is the built wheel, not the checkout that .venv points to: it stands first on the
# path, and a safe path keeps the working directory, with its own hmc_fast/, off it in every process.
WHEEL := build/wheel
ON_WHEEL := PYTHONPATH=$(CURDIR)/$(WHEEL) PYTHONSAFEPATH=1

.PHONY: bench study lint test test-systems test-exhaustive fuzz docs readme-table clean

bench: $(VENV)/installed
	$(VENV)/bin/hmc-fast bench

study: $(VENV)/installed
	sh scripts/study.sh "$(DATA)" "$(WEIGHTS)"

lint: $(VENV)/installed-dev $(WHEEL)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	cd $(WHEEL) && $(CURDIR)/$(VENV)/bin/mypy -p hmc_fast --config-file $(CURDIR)/pyproject.toml
	cd $(WHEEL) && $(CURDIR)/$(VENV)/bin/lint-imports --config $(CURDIR)/pyproject.toml

test: lint
	$(ON_WHEEL) OMP_NUM_THREADS=1 $(PYTEST) $(IN_PARALLEL) -m "not systems" --ignore=tests/kernels/interpreter --ignore=tests/speed
	$(ON_WHEEL) TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(TEST_PROCESSES) --dist worksteal tests/kernels/interpreter
	$(ON_WHEEL) $(PYTEST) tests/speed

# Real builders, cluster-like runs and whatever takes minutes.
test-systems: $(VENV)/installed-dev $(WHEEL)
	$(ON_WHEEL) OMP_NUM_THREADS=1 $(PYTEST) $(IN_PARALLEL) -m "systems and not exhaustive" --ignore=tests/kernels/interpreter

# Every model, every opset, ten kills: what CI runs samples of.
test-exhaustive: $(VENV)/installed-dev $(WHEEL)
	$(ON_WHEEL) OMP_NUM_THREADS=1 $(PYTEST) $(IN_PARALLEL) -m "systems and exhaustive"

# Damaged files for every reader; a failure names the seed that repeats it.
FUZZ_INPUTS := 20000
FUZZ_SEED := $(shell date +%s)

fuzz: $(VENV)/installed-dev $(WHEEL)
	$(ON_WHEEL) OMP_NUM_THREADS=1 HMC_FAST_FUZZ_INPUTS=$(FUZZ_INPUTS) $(PYTEST) -s --hypothesis-seed=$(FUZZ_SEED) tests/fuzz

# The site, in build/docs; a broken link stops it.
docs: $(VENV)/installed-dev $(WHEEL)
	$(VENV)/bin/mkdocs build

# The records that README and docs show; without one of the targets its table says so.
TARGETS_RECORD := $(firstword $(wildcard bench/results/targets-*.jsonl))
CPU_RECORDS := $(wildcard bench/results/cpu-*.jsonl)
MAIN_RECORD := bench/results/mias-hmc_net_lesions-512-cpu.jsonl

readme-table: $(VENV)/installed
	$(VENV)/bin/python -m hmc_fast.bench.report.readme README.md --main $(MAIN_RECORD)
	$(VENV)/bin/python -m hmc_fast.bench.report.readme docs/benchmark.md --targets $(TARGETS_RECORD) --cpu $(CPU_RECORDS)
	$(VENV)/bin/python scripts/readme_status.py README.md
	$(VENV)/bin/python scripts/readme_study.py docs/study.md
	$(VENV)/bin/python scripts/profile_cpu.py --table bench/results/cpu-profile.json docs/benchmark.md
	$(VENV)/bin/python scripts/training_step.py --table bench/results/cpu-training.json docs/benchmark.md
	$(VENV)/bin/python scripts/bulk_prediction.py page bench/results/bulk-prediction.json docs/predict.md
	$(VENV)/bin/python scripts/measure_graphs.py --table bench/results/graph-forms.json docs/export.md
	$(VENV)/bin/python scripts/build_engines.py --table bench/results/engine-builds.json docs/export.md
	$(VENV)/bin/python scripts/list_records.py docs/results.md
	$(VENV)/bin/python scripts/draw_architecture.py docs/architecture.svg
	$(VENV)/bin/python scripts/draw_records.py docs

$(VENV)/bin/python:
	sh scripts/make_venv.sh $(PYTHON) $(VENV)

# Editable: the checkout is what runs, from its root as from anywhere else. Modules are compiled when
# they are first imported; to compile all of them takes a minute.
PIP_INSTALL := $(VENV)/bin/pip install --quiet --no-compile
$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

$(WHEEL): $(VENV)/installed-dev $(SOURCES)
	rm -rf build dist
	$(VENV)/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PIP_INSTALL) --no-deps --target $@ dist/*.whl
	touch $@

clean:
	rm -rf $(VENV) build dist
