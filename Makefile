# Each target works on a fresh clone. Demo and documentation use one thread: their
# networks are small, and threads that wait for a busy core cost more than they save.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types format docs pictures clean

# The environment is rebuilt when the requirements have changed.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing sknan with torch and scikit-learn into $(VENV) (minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[plot,test]"
	touch $@

demo: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python examples/01_quickstart.py

test: lint types
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

docs: $(VENV)/installed-docs
	@echo "Running the examples of the gallery, then building docs/_build/html (some minutes) ..."
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Make the pictures of README and documentation anew.
pictures: $(VENV)/installed
	$(BIN)/python docs/pictures.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info outputs examples/outputs docs/_build docs/api docs/gallery docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache
