# Two commands for newcomers: `make demo` and `make test`. Both set up .venv from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check docs format clean

demo: $(VENV)/demo.installed
	$(BIN)/lary demo

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --python-version 3.13
	# The stubs of NumPy and pandas are written for 3.11 and later: under 3.10 what they type is Any.
	$(BIN)/mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores
	for version in 3.10 3.13; do \
	  $(PIP) --dry-run --ignore-installed --only-binary=:all: --python-version $$version --target $(VENV)/resolved '.[demo]' \
	    || exit 1; \
	done

docs: $(VENV)/dev.installed
	$(PIP) --editable '.[demo,dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(VENV)/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade pip

$(VENV)/demo.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lary and its libraries into $(VENV), about two minutes"
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lary and its libraries into $(VENV), about two minutes"
	$(PIP) --editable '.[demo,dev]'
	@touch $@ $(VENV)/demo.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
