# Two commands set everything up: `make demo` and `make test`. Both make .venv if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
# Tests start hundreds of processes: without bytecode each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

ORACLES := $(VENV)/.oracles
AS_ACCELERATOR := tests/flatness/test_perturbations.py tests/flatness/test_ascent.py \
	tests/flatness/test_msam.py tests/flatness/test_looksam.py tests/core/test_weights.py tests/core/test_buffers.py \
	tests/posteriors/test_swag.py tests/posteriors/test_samplers.py tests/posteriors/test_sgvb.py \
	tests/posteriors/test_lrt.py tests/laws/test_flatness.py tests/laws/test_posteriors.py

.PHONY: demo test test-accelerator test-minimal test-oracles test-all lint docs gallery bench bench-quick bench-gpu bench-gpu-quick clean

demo: $(READY)
	$(BIN)/flatbayes compare --config configs/demo.yaml --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2

# The oldest versions that are allowed, in an environment of their own; torch is a build of several gigabytes there.
test-minimal:
	$(PYTHON) -m venv .venv-minimal
	.venv-minimal/bin/python -m pip install --quiet --constraint constraints-minimal.txt --editable ".[data,hub,tune]" \
		pytest pytest-timeout pytest-xdist hypothesis beartype torchmetrics pandas tensorboard
	.venv-minimal/bin/python -m pytest -o addopts=--import-mode=importlib -p no:jaxtyping -W default -m "not slow" -n 2 \
		--ignore tests/docs --ignore tests/integrations --ignore tests/packaging --deselect tests/prediction/test_export.py

# References from laplace-torch and curvlinops. Their declared dependencies include torchvision, which needs another build
# of torch, so they are installed without dependencies.
test-oracles: $(ORACLES)
	$(BIN)/python -m pytest tests/oracles

$(ORACLES): $(READY) tests/oracles/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/oracles/requirements.txt
	touch $(ORACLES)

# A pretend accelerator, which exists for a whole process; then real numbers on the code paths of an accelerator.
test-accelerator: $(READY)
	$(BIN)/python -m pytest tests/accelerator -n 2 -m "not slow"
	$(BIN)/python -m pytest $(AS_ACCELERATOR) --as-accelerator -n 2 -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n 2
	$(BIN)/python -m pytest tests/accelerator -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The notebooks of docs/gallery, run again in an environment with pretrained weights; pages and pictures are committed.
gallery: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gallery]"
	$(BIN)/python docs/hooks/gallery.py

bench: $(READY)
	$(BIN)/python benchmarks/bench.py --out docs/results/benchmarks.json
	$(BIN)/python benchmarks/scaling.py docs/results/scaling.json docs/img/scaling.svg

bench-quick: $(READY)
	$(BIN)/python benchmarks/bench.py --quick

# On a machine with an NVIDIA GPU; DATA is a folder or file with CIFAR-10 (benchmarks/gpu_data.py).
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py --seconds 520 --out gpu.json $(if $(DATA),--data $(DATA))

# Its dry run on the CPU, with small sizes.
bench-gpu-quick: $(READY)
	$(BIN)/python benchmarks/gpu.py --device cpu --seconds 60

# torch comes first and alone: a version that is there already is never replaced by a larger build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-minimal build dist site .mypy_cache .ruff_cache .pytest_cache
