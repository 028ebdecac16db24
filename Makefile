# make demo   train a pruner, measure it, leave runs/demo/report.html
# make test   build everything, run all tests; those of the report page need a Chromium (Debian: apt-get install chromium)
# make paper-small   the whole experiment in small: ablations over seeds, all methods on both tasks, compressors
# make gpu-check   all that a GPU must show, under nine minutes; with PYTHON of your choice
# The first two make .venv first. Nothing outside this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# With an NVIDIA driver the newest torch, which brings CUDA; elsewhere one version, so that runs compare.
TORCH  ?= $(if $(shell command -v nvidia-smi),torch>=2.11,torch==2.13.0)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo paper-small test test-integrations bench gpu-check lint clean

setup: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" "setuptools>=77" wheel ninja "pybind11>=2.13"
	@touch $@

# --no-build-isolation: the extension is built against the torch just installed, not another one.
$(VENV)/.built: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*)
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

demo: $(VENV)/.built
	$(BIN)/budgetprune demo --out runs/demo

paper-small: $(VENV)/.built
	$(BIN)/budgetprune paper --out runs/paper-small

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

# The real lmms-eval, without most of its requirements: they are for other models. vLLM's tests run where vLLM is.
# Data sets of Hugging Face, TensorBoard and W&B (offline) too, whose tests `make test` skips.
test-integrations: $(VENV)/.dev
	$(PIP) --no-build-isolation --editable ".[integrations,train]" wandb
	$(PIP) --no-deps lmms-eval==0.7.3
	$(BIN)/python -m pytest tests/integrations tests/training/test_conversations.py tests/training/test_hub_data.py \
		tests/training/test_trackers.py

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --quiet --benchmark-disable-gc --benchmark-json=benchmarks/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/latest.json

# No .venv of its own where python3 already has a torch with CUDA: it must also run on a bare machine, without a network.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

lint: $(VENV)/.dev
	$(BIN)/ruff check budgetprune tests benchmarks examples setup.py

clean:
	rm -rf build dist *.egg-info budgetprune/*.so benchmarks/latest.json $(VENV)/.built $(VENV)/.dev
