# The executed notebook is the target: build/<profile>/NN_name.ipynb. `make` prints the targets, `make -n figures` the plan.
PROFILE ?= fast
OUT     := build/$(PROFILE)
NB      := $(sort $(basename $(notdir $(wildcard notebooks/[0-9][0-9]_*.py))))
LIBRARY := $(shell find popcosmos_lib -type f -not -name '*.pyc' -not -path '*/weights/*')

# A virtual environment of our own, unless PYTHON names an interpreter that has everything (conda: make PYTHON=python ...).
ifneq ($(origin PYTHON),command line)
PYTHON := .venv/bin/python
READY  := .venv/.ready
endif
RUN := $(PYTHON) -m popcosmos_lib

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDEXPANSION:
.PHONY: help setup data figures notebooks test replay unit physics lint refs copies tables docs-map lab bench clean $(NB)

include notebooks/deps.mk

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  NN_name   run one notebook and what it reads: $(NB)"
	@echo "options: PROFILE=smoke|fast|full (default fast), PYTHON=... (an environment of your own), -j2 (two notebooks at a time)"

setup: $(READY) ## make .venv from requirements.lock (every other target does it when needed)

# Modules are compiled once here, on all cores; otherwise every process that may not write there compiles them anew.
.venv/.lock: requirements.lock
	@echo "setting up .venv (once; some minutes)"
	@python=$$(for p in python3.11 python3.12 python3.13 python3; do command -v $$p; done | while read -r p; do \
	  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo "$$p" && break; done); \
	test -n "$$python" || { echo "Python 3.11 or newer is needed: install it, or make PYTHON=<interpreter that has requirements.lock>"; exit 1; }; \
	"$$python" -m venv --clear .venv
	.venv/bin/python -m pip install --no-cache-dir --no-compile -r requirements.lock
	@.venv/bin/python -m pip uninstall -qq --yes triton # comes with the CUDA wheel of torch: 0.7 GB that only torch.compile needs
	@.venv/bin/python -m compileall -q -j 0 .venv/lib/python3*/site-packages > /dev/null 2>&1 || true
	@touch $@

.venv/.ready: .venv/.lock pyproject.toml
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

data: $(READY) ## list the data, or fetch one item with ID=...
	@$(RUN) data $(ID)

$(OUT)/%.ipynb: notebooks/%.py $(LIBRARY) profiles.yaml $$(addsuffix .ipynb,$$(addprefix $(OUT)/,$$(deps_$$*))) | $(READY)
	$(RUN) run $< --profile $(PROFILE)

$(NB): %: $(OUT)/%.ipynb

notebooks: $(addsuffix .ipynb,$(addprefix $(OUT)/,$(NB))) ## only run every notebook that is out of date

figures: notebooks ## run every notebook that is out of date; check and publish figures, copies and tables
	$(RUN) figures --profile $(PROFILE)
ifeq ($(PROFILE),fast)
	$(RUN) copies
	$(RUN) tables
endif

test: lint ## lint, then the three parts below, two at a time
	@$(MAKE) --no-print-directory -j2 --output-sync=target replay unit physics

replay: $(READY) ## notebook tests, and the smoke run of every notebook against its reference
	$(TEST_ENVIRONMENT) $(PYTHON) -m pytest --nbval-lax --nbval-current-env -p no:cacheprovider tests/notebooks

unit: $(READY) ## tests of each module
	$(TEST_ENVIRONMENT) $(PYTHON) -m pytest -p no:cacheprovider tests/unit

physics: $(READY) ## tests of what must be true of galaxies, against other codes and real data too
	$(TEST_ENVIRONMENT) $(PYTHON) -m pytest -p no:cacheprovider tests/physics

TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONHASHSEED=0 MPLBACKEND=

lint: $(READY) ## ruff, the contract of the imports (pyproject.toml), and types of what users import
	$(PYTHON) -m ruff check .
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo --no-cache
	$(PYTHON) -m mypy

refs: ## rerun the smoke profile and rewrite the references of the tests (read the diff before committing it)
	$(MAKE) PROFILE=smoke notebooks
	$(RUN) refs

copies: $(READY) ## publish build/fast as the reading copies notebooks/*.ipynb
	$(RUN) copies

tables: $(READY) ## regenerate the tables of README.md, REPRODUCING.md and docs/
	$(RUN) tables

docs-map: $(READY) ## draw docs/architecture.svg from the imports of the code
	$(RUN) map

lab: $(READY) ## open JupyterLab on notebooks/ (right click a .py: Open With, Notebook)
	$(PYTHON) -m jupyter lab notebooks

BENCHMARKS := $(filter-out benchmarks/catalogue.py benchmarks/portability.py,$(sort $(wildcard benchmarks/*.py)))

bench: $(READY) ## measure cost and accuracy on an idle machine (benchmarks/); portability, which takes long, comes last, catalogue.py not at all
	@for script in $(BENCHMARKS); do echo "$$script"; OMP_WAIT_POLICY=PASSIVE $(PYTHON) "$$script" || exit 1; done
	$(RUN) tables
	$(PYTHON) benchmarks/portability.py

clean: ## remove build/ and artefacts/ (never .venv, data/ or what is committed)
	rm -rf build artefacts
