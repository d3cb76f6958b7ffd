# Every target sets itself up: a virtual environment in .venv with the pinned packages, on Python 3.11 - 3.13.
# `make` alone lists the targets. Variables: PYTHON (interpreter to start from), OMP_NUM_THREADS, ARGS (passed on).

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.stamp-runtime
TOOLS := $(VENV)/.stamp-tools
STUDIO := $(VENV)/.stamp-studio
DEMO := runs/demo
ARGS ?=

# Small tensors lose more to thread hand-over than they gain from threads: four are plenty for the miniature.
CORES := $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -gt 4 ] && echo 4 || echo "$$n")
OMP_NUM_THREADS ?= $(CORES)
export OMP_NUM_THREADS

# Two processes of one thread train the miniature 1.2 times as fast as one of two threads (docs/benchmarks.md). A GPU is not shared.
PROCESSES := $(shell command -v nvidia-smi >/dev/null 2>&1 || [ "$(CORES)" -lt 2 ] && echo 1 || echo 2)

# What `make check` tests: the method and the tree, and nothing that starts a process or a model of another library.
METHOD := $(addprefix tests/unit/,advantages sampling objectives training recipe test_registry.py test_seeding.py test_testing.py) \
  tests/test_imports.py

.PHONY: help setup demo studio check method test test-deepspeed rehearsal lint docs pages skeletons ablation assets clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      train, evaluate and report the embedded miniature ($(DEMO)/report.html)"
	@echo "make studio    a local page to draw by the demo's run, watch it train and compare blind (http://127.0.0.1:7860)"
	@echo "make check     ruff, mypy and the tests of the method; a minute"
	@echo "make test      all tests, ruff, mypy, strict docs build"
	@echo "make test-deepspeed  two processes under ZeRO-2 and ZeRO-3; needs a C++ compiler"
	@echo "make rehearsal  every recipe of a real policy on tiny weights: two processes, killed and resumed; minutes"
	@echo "make lint      ruff and mypy alone"
	@echo "make docs      the documentation, into site/"
	@echo "make pages     the generated parts of docs/, from what the code does; a few minutes"
	@echo "make skeletons  the shapes of known models, from what diffusers builds"
	@echo "make ablation  the comparison of docs/ablation.md; hours, resumable"
	@echo "make assets    rebuild the miniature checkpoints of src/customized_grpo/mini/assets"
	@echo "make clean     remove caches and built files; keeps .venv and runs/"

setup: $(RUNTIME)

demo: $(RUNTIME)
	OMP_NUM_THREADS=$$(($(CORES) / $(PROCESSES))) \
	  scripts/train_customized_grpo.sh config/train/mini_customized.yaml $(PROCESSES) run.dir=$(DEMO) \
	  $$(test ! -f $(DEMO)/config.yaml || echo run.resume=latest) $(ARGS)
	$(BIN)/customized-grpo report $(DEMO)

# Without a demo, the miniature's base alone draws.
studio: $(STUDIO)
	$(BIN)/customized-grpo studio $$(test ! -f $(DEMO)/config.yaml || echo $(DEMO)) $(ARGS)

# One process per core, one thread per test: jobs that fight for the same cores take many times longer than one after the other.
PYTEST := $(BIN)/pytest -n $(CORES) --dist worksteal
check method test: export OMP_NUM_THREADS = 1

check: $(TOOLS)
	@$(MAKE) --no-print-directory -j 2 lint method

method: $(TOOLS)
	$(PYTEST) $(METHOD) --deselect tests/test_imports.py::test_every_module_imports_without_torchvision_and_without_a_warning

test: $(TOOLS)
	@$(MAKE) --no-print-directory -j 2 lint docs
	$(PYTEST) $(ARGS)

rehearsal: export OMP_NUM_THREADS = 1
rehearsal: $(TOOLS)
	$(BIN)/pytest -m "rehearsal or not rehearsal" --durations 0 tests/distributed/test_rehearsal.py $(ARGS)

# Beside the environment, not in it: accelerate imports DeepSpeed in every process where it finds it, which takes seconds.
test-deepspeed: export OMP_NUM_THREADS = 1
test-deepspeed: $(VENV)/deepspeed
	PYTHONPATH=$(VENV)/deepspeed $(BIN)/pytest -m deepspeed tests/distributed/test_two_ranks.py $(ARGS)

$(VENV)/deepspeed: requirements-deepspeed.txt $(TOOLS)
	@rm -rf $@
	@$(PIP) install -qq --no-deps --target $@ -r requirements-deepspeed.txt

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: $(TOOLS)
	PYTHONPATH=tests/support HF_HUB_OFFLINE=1 $(BIN)/python tools/pages.py $(ARGS)

skeletons: $(RUNTIME)
	$(BIN)/python tools/skeletons.py

ablation: $(RUNTIME)
	$(BIN)/python benchmarks/ablation.py $(ARGS)

assets: $(RUNTIME)
	PYTHONPATH=tools $(BIN)/python -m build_mini $(ARGS)

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# An explicit PYTHON has to fit; otherwise the first interpreter that is new enough and can make environments.
# The target is pip because it comes last: an interrupted environment is made again.
$(BIN)/pip:
	@fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; \
	for python in $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if command -v $$python >/dev/null 2>&1 && $$python -c "$$fits" 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "No usable Python: 3.11, 3.12 or 3.13 with the venv module is needed (Debian: apt install python3-venv)." >&2; \
	  echo "Tried: $$($(or $(PYTHON),python3) --version 2>/dev/null || echo 'no python3')." \
	    "Name another one with: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version)"; $$found -m venv $(VENV)

# Without an NVIDIA driver the CPU build of torch goes in first; the pin in requirements.txt is then already met.
$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/pip
	@echo "Installing the pinned packages into $(VENV) (about 1.4 GB on disk without CUDA)"
	@command -v nvidia-smi >/dev/null 2>&1 || $(PIP) install -qq --no-deps --retries 1 \
	  --extra-index-url https://download.pytorch.org/whl/cpu "$$(grep '^torch==' requirements.txt)"
	@$(PIP) install -qq -r requirements.txt
	@$(PIP) install -qq --no-deps -e .
	@touch $@

$(STUDIO): requirements-studio.txt $(RUNTIME)
	@$(PIP) install -qq -r requirements-studio.txt
	@touch $@

$(TOOLS): requirements-dev.txt requirements-studio.txt $(RUNTIME)
	@$(PIP) install -qq -r requirements-dev.txt
	@touch $@
