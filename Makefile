# `make demo` and `make test` each need nothing but Python >= 3.11 and make: they create .venv,
# install what they use, and install again only when pyproject.toml has changed.

PYTHON ?= python3
BACKENDS := tensorflow jax torch
# The longest first. `once`: tests that do not depend on the backend, on TensorFlow; those of them
# that train, in processes of their own too, are `once_on_torch`.
PASSES := jax torch once tensorflow
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
LOGS := build/test
# What tests compare networks with. Without what it depends on: that is torchvision, which would
# bring another torch with gigabytes of CUDA libraries, and requests, which others bring.
PEER := pytorchcv==0.0.74
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-faults test-dist dist lint format bench remeasure readme docs clean $(PASSES:%=test-%) test-long

help:
	@echo "make demo    load pretrained weights, classify real images, fine-tune for a few steps"
	@echo "make test    the whole suite, once on each of: $(BACKENDS)"
	@echo "make test-long  a few more minutes of tests, left out of the suite to keep it short"
	@echo "make lint    check style; 'make format' corrects it"
	@echo "make bench   mean-field against plain Keras layers, side by side"
	@echo "make remeasure DATA=D  what the documentation says of the shipped weights (hours)"
	@echo "make dist    the wheel and the source distribution, checked, with a list of what they need"
	@echo "make test-dist    both installed in empty environments and used there"
	@echo "make test-faults  the long test: kills, faults of the disk, hostile files (some 20 minutes)"
	@echo "make docs    this documentation as a site of plain files: build/site/index.html"
	@echo "make clean   remove .venv and everything built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python. Received: $(PYTHON)"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp for each set of extras, so that the sets share the environment.
$(VENV)/.demo: EXTRA := plot
$(VENV)/.test: EXTRA := test
$(VENV)/.dev: EXTRA := dev
$(VENV)/.fuzz: EXTRA := fuzz
$(VENV)/.docs: EXTRA := docs
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.fuzz $(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "Installing mf_zoo[$(EXTRA)] into $(VENV) (minutes, the first time)"
	@$(PIP) install -e ".[$(EXTRA)]"
	@if [ "$(EXTRA)" != plot -a "$(EXTRA)" != docs ]; then $(PIP) install --no-deps $(PEER); fi
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/mf-zoo demo

# Two passes at a time with one thread each use two cores best. Each prints its whole log when
# it is done; all of them run even where one fails, and then `make test` fails.
test: $(VENV)/.test
	@$(MAKE) --no-print-directory -k -j$(JOBS) $(PASSES:%=test-%)

# XLA compiles for most of the JAX pass; its code need not be fast there.
test-jax: export XLA_FLAGS ?= --xla_backend_optimization_level=0
test-%: SELECT := -m "not once and not once_on_torch and not long"
test-once: SELECT := -m "once and not long"
test-torch: SELECT := -m "not once and not long"
test-long: SELECT := -m long
test-%: BACKEND = $*
test-once: BACKEND := tensorflow
test-long: BACKEND := torch
$(PASSES:%=test-%) test-long: test-%: $(VENV)/.test
	@mkdir -p $(LOGS)
	@echo "Testing on $(BACKEND) ($*) ..."
	@echo "======== $* ========" > $(LOGS)/$*.log; \
	KERAS_BACKEND=$(BACKEND) OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 \
	  $(BIN)/python -m pytest $(SELECT) $(PYTEST_ARGS) \
	  >> $(LOGS)/$*.log 2>&1; \
	status=$$?; cat $(LOGS)/$*.log; exit $$status

# The long version of tests/test_faults.py and tests/test_fuzzing.py, side by side on two cores.
test-faults: $(VENV)/.fuzz
	@$(BIN)/python -m tests.trust --jobs $(JOBS) $(TRUST_ARGS)

# The same commit gives the same wheel to the byte, whenever and wherever it is built.
dist: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
dist: $(VENV)/.test
	@rm -rf dist build/lib build/bdist.*
	@$(BIN)/python -m build --outdir dist . > /dev/null
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --output-file dist/mf_zoo.cdx.json
	@sha256sum dist/*

USE := import mf_zoo; m = mf_zoo.applications.MFResNet20(weights="cifar10"); \
  x, y = mf_zoo.data.sample("cifar10"); \
  right = int((m.predict(x, verbose=0).argmax(1) == y).sum()); \
  print(mf_zoo.__file__, right, "of 200 right"); assert right == 190
test-dist: dist
	@set -e; for file in dist/*.whl dist/*.tar.gz; do \
	  rm -rf build/empty; $(PYTHON) -m venv build/empty; \
	  build/empty/bin/python -m pip --disable-pip-version-check -qq install $$file; \
	  (cd build/empty && bin/python -c '$(USE)' && bin/mf-zoo info MFResNet20); \
	done; rm -rf build/empty

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.demo
	@$(BIN)/python -m benchmarks.train_step

# All that the documentation says of the shipped weights, measured anew. It takes hours.
DEPTH = $(BIN)/python -m benchmarks.depth --data-dir $(DATA) --images 2000 --statistics 2000
TRAINED := MFResNet20:cifar10 ResNet20:cifar10
remeasure: export KERAS_BACKEND = tensorflow
remeasure: $(VENV)/.dev
	@test -d "$(DATA)" || \
	  { echo "DATA must be a folder of cifar10.npz and cifar100.npz. Received: '$(DATA)'"; exit 1; }
	$(BIN)/python -m benchmarks.quantization --data-dir $(DATA) --threads 1
	$(BIN)/python -m benchmarks.robustness --data-dir $(DATA) --limit 2000
	$(BIN)/python -m benchmarks.integrators --data-dir $(DATA) --parts 1 --calibrate 1000
	KERAS_BACKEND=torch $(BIN)/python -m benchmarks.lesions --data-dir $(DATA)
	$(DEPTH) --depths 20 32 56 110 218
	$(DEPTH) --weights MFResNet20:cifar10 --depths 32 --rules constant linear
	$(DEPTH) --weights MFResNet20:cifar10 --coarsen 2,1,1 --rules merge merge_updates constant linear
	$(DEPTH) --weights $(TRAINED) --depths 32 --epochs 1 2 4 --train-images 5000
	$(DEPTH) --weights $(TRAINED) --depths 32 --epochs 1 2 4
	$(BIN)/python examples/transfer.py --data-dir $(DATA) \
	  --output benchmarks/results/transfer-tensorflow.csv
	$(BIN)/python -m mf_zoo.theory.figures --output docs/theory
	$(BIN)/python examples/grad_cam.py --images 4 --output docs/grad_cam.png
	KERAS_BACKEND=torch $(BIN)/python notebooks/run.py
	@$(MAKE) --no-print-directory readme

# Pictures and tables of the README, from the records, histories and benchmark results.
readme: $(VENV)/.demo
	@$(BIN)/python docs/make_pictures.py
	@$(BIN)/mf-zoo demo --picture docs/demo.png
	@$(BIN)/python -m docs.update_readme

# Broken links and anchors fail it. The variable leaves out a notice of the theme.
docs: $(VENV)/.docs docs-browser
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs -q build
	@echo "Open build/site/index.html; by 'python -m http.server -d build/site' search works too"

# The page that runs networks in the browser, which the site takes up: docs/browser.md.
docs-browser: $(VENV)/.docs
	@if command -v npm > /dev/null; then \
	  $(BIN)/python -m web.build --output build/browser $(BROWSER_ARGS); \
	else echo "docs-browser is skipped: no npm, which brings onnxruntime-web"; fi

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo.png demo.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
