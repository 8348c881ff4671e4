# Everything starts from here: `make demo` and `make test` need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread each: the tests run side by side, and threads of one would wait for the others.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-all interop check format clean

demo: $(VENV)/.demo
	$(BIN)/pgn demo $(ARGS)

test: $(VENV)/.dev
	$(PYTEST) $(ARGS)

# The tests above, then those that train and evaluate for minutes.
test-all: test
	$(PYTEST) -m slow $(ARGS)

# Against software that others wrote, each in an environment of its own, made on first use below tests/interop/.venvs.
interop: $(VENV)/.dev
	$(BIN)/python -m pytest -m interop -rs tests/interop $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) tests/interop/.venvs demo_out .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
ifdef UV
	uv venv --python '>=3.11' $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(call install,.[all])
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(call install,.[dev])
	touch $@ $(VENV)/.demo

ifdef UV
install = uv pip install --python $(BIN)/python -e '$(1)'
else
install = $(BIN)/python -m pip install -e '$(1)'
endif
