# Everything a learner types. On a machine with only Python 3.10 or newer and make, each target first creates .venv
# and installs the kit with the tested versions.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
LESSONS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help tour lab test bench notebooks lint doctor clean

help:  ## show this list
	@echo "medvlp_kit: the runnable survey of medical vision-language pretraining"
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

tour: $(INSTALLED)  ## the whole path in five minutes: data, pretraining, zero-shot, retrieval, grounding
	@$(BIN)/medvlp run notebooks/00_tour.ipynb --budget laptop --slack 3

lab: $(INSTALLED)  ## open JupyterLab on the lessons
	@$(BIN)/medvlp lab

test: $(INSTALLED)  ## run every test (at most 20 minutes on two cores)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --durations 15

bench: $(INSTALLED)  ## measure speed against the textbook forms
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py --benchmark-only -p no:xdist -s --timeout 1200

notebooks: $(INSTALLED)  ## run lessons whose outputs are stale, at the laptop budget, and keep the outputs
	$(BIN)/medvlp run --in-place --stale --budget laptop $(LESSONS)

lint: $(INSTALLED)  ## style of sources and notebooks
	$(BIN)/ruff check medvlp_kit tests
	$(BIN)/python -m pytest tests/test_lint.py tests/test_lesson_contract.py

doctor: $(INSTALLED)  ## what this machine has, what is missing, how to mend it
	@$(BIN)/medvlp doctor

clean:  ## remove the environment, runs and caches (lessons and data stay)
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis .benchmarks build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs in a fraction of pip's time; where it cannot be had, pip does the same.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10: run make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
		|| { rm -rf .venv; echo "error: $(PYTHON) cannot make environments: on Debian, apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	@echo "Installing the kit into .venv (about 3 GB with PyTorch; only the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& $(BIN)/python -m uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[test,dicom,explore,faiss]' \
		|| $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,dicom,explore,faiss]'
	@touch $@
