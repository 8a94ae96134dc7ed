# Everything runs in this project's own virtual environment, made from pyproject.toml and constraints.txt alone.
#   PYTHON=python3.12     the interpreter to make it with (>= 3.11; looked for if not given)
#   HFILTER_PURE=1        no compiler: the pure-Python package, in an environment of its own (.venv-pure)
#   PYTEST_ARGS='-k tree' further arguments for pytest
.DEFAULT_GOAL := help
.PHONY: help install test judges demo bench bench-compare lint format stubs check-stubs sanitize clean

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifeq ($(HFILTER_PURE),1)
VENV ?= .venv-pure
else
VENV ?= .venv
endif
BIN := $(VENV)/bin
# pip reads these too, inside the environments it builds wheels in; nothing is fetched that was not tested.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
JOBS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
CXX_FILES := $(wildcard csrc/*.h csrc/*.hpp csrc/*.cpp csrc/*.cu tests/cpp/*.hpp tests/cpp/*.cpp benchmarks/*.cpp)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# The environment: build tools and everything that `.[dev]` names, then the package itself.
$(VENV)/tools.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "hfilter needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet scikit-build-core pybind11 cmake ninja
	@touch $@

# An ordinary installation, not an editable one: what is tested is what a user gets. Compiled objects are kept in build/,
# so that a change of a Python file costs a copy and not a compilation. Directories count, for files that were removed.
$(VENV)/installed.stamp: $(VENV)/tools.stamp pyproject.toml CMakeLists.txt $(shell find hfilter csrc -not -path '*/__pycache__*')
	$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir='build/{wheel_tag}' '.[dev]'
	@touch $@

install: $(VENV)/installed.stamp ## the environment in .venv, with the package compiled and installed

# PYTHONSAFEPATH keeps the source tree out of the child processes that tests start; one worker per core is threads enough.
test: install ## all tests, and the examples in the docstrings, against the installed package
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --doctest-modules --pyargs tests/ hfilter $(PYTEST_ARGS)

demo: install ## the main job: ten million sequences, exact accuracies, a small encoder beside them, a report
	$(BIN)/hfilter demo $(DEMO_ARGS)

# Peers: JAX from the extra `bench`; BEAGLE if its headers are here (Debian and Ubuntu: libhmsbeagle-dev), else it is
# left out and the page says so. BENCH_ARGS='--only beliefs' asks for some cases.
$(VENV)/bench.stamp: $(VENV)/installed.stamp
	$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir='build/{wheel_tag}' '.[bench]'
	@touch $@

# Programs by other people as judges: a few hundred megabytes that `make test` does without (it says so where it skips).
$(VENV)/judges.stamp: $(VENV)/installed.stamp
	$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir='build/{wheel_tag}' '.[judges]'
	@touch $@

judges: $(VENV)/judges.stamp ## the answers of pgmpy, genlm-grammar and nltk beside ours
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_judges.py $(PYTEST_ARGS)

build/beagle_peer: benchmarks/beagle_peer.cpp
	@mkdir -p build
	@flags=$$(pkg-config --cflags --libs hmsbeagle-1 2>/dev/null) \
	    && $${CXX:-c++} -O3 -std=c++17 -Wall -Wextra $< -o $@ $$flags \
	    || echo "no BEAGLE here (libhmsbeagle-dev and pkg-config): that contestant is left out"

bench: $(VENV)/bench.stamp build/beagle_peer ## every contestant checked, then timed, in turn; QUICK=1: a minute, nothing is written
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick,--write) $(BENCH_ARGS)

bench-compare: $(VENV)/installed.stamp ## BASE=revision [HEAD=revision]: fails if a hot call became slower
	@test -n "$(BASE)" || { echo "which revision to compare with: make bench-compare BASE=main~1" >&2; exit 1; }
	$(BIN)/python benchmarks/compare.py '$(BASE)' '$(or $(HEAD),HEAD)' $(BENCH_ARGS)

lint: install check-stubs ## ruff, mypy --strict, clang-format, stubs of the compiled module
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: install ## rewrite Python and C++ in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

STUBS := build/stubs/hfilter/_cpu.pyi build/stubs/hfilter/_cuda.pyi
$(STUBS): build/stubs/hfilter/%.pyi: $(VENV)/installed.stamp
	cd $(VENV) && bin/pybind11-stubgen hfilter.$* --exit-code -o ../build/stubs
	$(BIN)/ruff check --quiet --select I,UP --fix $@
	$(BIN)/ruff format --quiet $@

stubs: $(STUBS) ## write hfilter/_cpu.pyi and _cuda.pyi, the types of the compiled modules
	cp $^ hfilter/

check-stubs: $(STUBS)
	@for f in $^; do diff -u hfilter/$${f##*/} $$f \
	    || { echo "hfilter/$${f##*/} is not what the module says: run make stubs" >&2; exit 1; }; done

sanitize: $(VENV)/tools.stamp ## the C++ tests: plain, with address and undefined-behaviour, with thread sanitizer
	@for s in '' address,undefined thread; do \
	    name=$${s%%,*}; dir=build/cpp-$${name:-plain}; echo "== C++ tests, sanitizers: $${s:-none}"; \
	    $(BIN)/cmake -S . -B $$dir -G Ninja -DCMAKE_MAKE_PROGRAM='$(CURDIR)/$(BIN)/ninja' --log-level=WARNING \
	        -DCMAKE_BUILD_TYPE=$${s:+Sanitize} -DHFILTER_CPP_TESTS=ON -DHFILTER_SANITIZE=$$s \
	    && $(BIN)/cmake --build $$dir && $(BIN)/ctest --test-dir $$dir --output-on-failure || exit 1; \
	done

clean: ## remove the environments, the builds and the caches
	rm -rf .venv .venv-pure build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
