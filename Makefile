# The face of the project: `make demo` and `make test` work on a machine that has only Python >= 3.11 and make.
# Every target first makes sure of .venv through a stamp file, so that nothing is installed twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAB_READY := $(VENV)/.lab-ready

# Two processes share the cores in `make test`, and one thread each is the fastest there; it also makes results repeat.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# The walkthrough; make notebooks CHAPTER=00_tour works on one chapter alone.
BOOK := $(BIN)/python -m dsv3.learn.book
ONE_CHAPTER := $(if $(CHAPTER),--chapter $(CHAPTER))

# What the targets write.
OUT := out

export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types imports notebooks test-notebooks test-browser lab bench train-tiny clean distclean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

# ------------------------------------------------------------------------------------------------------- environment

# torch comes first and by exact version, with every other version held by the same file: any later requirement that only
# says "torch" is then already met, and no resolver replaces it by another build.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dsv3 needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=python3.12 or the like" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c requirements.txt "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(LAB_READY): $(READY) requirements-lab.txt
	$(BIN)/python -m pip install --quiet -c requirements.txt -r requirements-lab.txt
	@touch $@

# ---------------------------------------------------------------------------------------------------------- the work

demo: $(READY) ## continue a story in English, Spanish and Chinese with the embedded model, and show its expert load
	@$(BIN)/dsv3 demo --save-plot $(OUT)/experts.png

# The checks run before the tests whatever -j says, so the last line printed is pytest's.
test: lint types imports test-notebooks ## every check, then every test: what CI runs
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2

lint: $(READY) ## format and lint, without changing a file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY) ## format the code and apply the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(READY) ## pyright, strict on the package
	$(BIN)/pyright

imports: $(READY) ## the import contracts of pyproject.toml (docs/architecture.md)
	$(BIN)/lint-imports

notebooks: $(READY) ## run the walkthrough in its three languages and keep the outputs, then check it
	$(BOOK) navigate
	$(BOOK) extract $(ONE_CHAPTER)
	$(ONE_THREAD) $(BOOK) execute --language en $(ONE_CHAPTER)
	$(BOOK) build $(ONE_CHAPTER)
	$(ONE_THREAD) $(BOOK) execute --language es --language zh $(ONE_CHAPTER)
	$(BOOK) readme
	$(BOOK) check $(ONE_CHAPTER)

# Every page is run and its outputs are compared; sanitize.cfg says what may differ.
test-notebooks: $(READY) ## run the walkthrough and compare what it prints with what is stored
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=120 \
	  --nbval-sanitize-with=notebooks/sanitize.cfg notebooks

# Part of `make test` wherever JupyterLab and a Chromium are; this installs the former.
test-browser: $(LAB_READY) ## the walkthrough in JupyterLab: pages run and sliders turned in a headless Chromium
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests/learn/test_browser.py

lab: $(LAB_READY) ## JupyterLab at the walkthrough's first page, in the language of LANG (en, es, zh)
	@case "$${LC_ALL:-$${LC_MESSAGES:-$${LANG:-}}}" in es*) page=es;; zh*) page=zh;; *) page=en;; esac; \
	  exec $(BIN)/jupyter lab "notebooks/$$page/00_tour.ipynb"

bench: $(READY) ## measure on this CPU beside transformers with the same weights; rewrites docs/performance.md
	$(BIN)/python benchmarks/cpu_decode.py
	$(BIN)/python benchmarks/render.py

train-tiny: $(READY) .data/train.npz ## train the embedded model's shape on a folder of text: make train-tiny CORPUS=folder
	$(BIN)/dsv3 train --config configs/train_tiny.json

# What the folder must hold is said at the head of dsv3/train/corpus.py.
.data/train.npz: | $(READY)
	@test -n "$(CORPUS)" || { echo "no prepared text in .data: say where text is, make train-tiny CORPUS=folder" >&2; exit 2; }
	$(BIN)/python -m dsv3.train.corpus "$(CORPUS)" .data

clean: ## remove caches and what the targets wrote; the environment stays
	rm -rf $(OUT) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find dsv3 tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV)
