# make demo   install into .venv, train and predict on real images, write hrmedseg_demo/demo.png
# make test   install into .venv, run all tests (make test-fast, make test-end-to-end: a part of them; TESTS=tests/io: a folder)
# make coverage   the fast tests, and the lines that they do not run
# make lint   ruff, mypy, codespell, and import-linter for the layers of the package
# make docs   build the documentation into build/site; fails on a dead link
# make fake-gpu   a training with -device cuda on a stand-in for CUDA; needs g++ and a torch built for CUDA 13

PYTHON ?= python3
VENV ?= .venv
TEST_PROCESSES ?= 2
TESTS ?= tests
BIN := $(VENV)/bin
SOURCES := $(shell find nnunet_hrmedseg client -type f -not -name '*.pyc')

# tiny tensors: a process a core is faster than threads
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-end-to-end coverage fake-gpu lint docs wheel format clean

demo: $(VENV)/installed
	$(BIN)/hrmedseg demo -o hrmedseg_demo --overwrite

test: $(VENV)/installed
	$(PYTEST)

test-fast: $(VENV)/installed
	$(PYTEST) -m "not end_to_end and not slow"

test-end-to-end: $(VENV)/installed
	$(PYTEST) -m end_to_end

coverage: $(VENV)/installed
	$(PYTEST) -m "not end_to_end and not slow" --cov=nnunet_hrmedseg --cov=hrmedseg_onnx --cov-report=term:skip-covered --cov-report=xml

fake-gpu: $(VENV)/installed
	$(BIN)/python scripts/fake_gpu/check.py

lint: $(VENV)/dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:client $(BIN)/lint-imports
	$(BIN)/codespell *.md docs client nnunet_hrmedseg tests benchmarks scripts serving

docs: $(VENV)/dependencies
	$(BIN)/python -m pip install --quiet ".[docs]"
	$(BIN)/python -m mkdocs build --strict

# builds, installs, tries and uninstalls the wheel, over what is in .venv
wheel: $(VENV)/dependencies
	$(BIN)/python scripts/check_wheel.py --over $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

format: $(VENV)/dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# everything the package needs, then the package alone again whenever its own files change:
# tests and demo run what a user installs
$(VENV)/dependencies: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet ".[test]"
	touch $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall .
	rm -rf build
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info hrmedseg_demo
