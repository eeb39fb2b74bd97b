# `make demo` and `make test` need Python 3.11 with venv, g++ and the Python headers; everything else they install in .venv/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
# DeepSpeed compiles one op on first use; a cache of our own is not rebuilt by other projects' compilers
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
RANKS ?= 2
DISTILL := deepspeed --num_gpus $(RANKS) pipeline/distill.py --deepspeed ds_configs/zero3.json

.PHONY: demo demo-teacher test test-all code code-data bench study lint clean

$(VENV)/.installed: requirements.txt
	@command -v g++ > /dev/null || { echo "make: g++ is missing: install a C++ compiler (Debian: apt-get install g++)"; exit 2; }
	@$(PYTHON) -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' \
	  || { echo "make: the headers of $(PYTHON) are missing: install them (Debian: apt-get install python3-dev)"; exit 2; }
	@echo "== installing requirements.txt into .venv (a minute or more)"
	@$(PYTHON) -m venv $(VENV)
	@pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt
	@pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

# The main job at laptop size: align, train the student alone, distil it, score both and the teacher, report.
demo: $(VENV)/.installed
	@bash demo/run.sh $(RANKS)

# Trains the demo's teacher again from scratch and puts it in demo/teacher (1,500 steps: about 6 minutes on two cores).
demo-teacher: $(VENV)/.installed
	python demo/make_data.py
	python pipeline/align.py --recipe demo_teacher
	$(DISTILL) --recipe demo_teacher
	python pipeline/evaluate.py --recipe demo_teacher
	cp runs/demo-teacher/checkpoints/step-*/export/model.safetensors demo/teacher/

test: $(VENV)/.installed-tests
	python -m pytest -m "not slow"

test-all: test
	python -m pytest -m slow

# Real tokenizers and real text, at toy model size: see pipeline/config/recipes/code.yaml.
code-data: $(VENV)/.installed
	python demo/code/fetch_tokenizers.py
	python demo/code/harvest.py
	python pipeline/evaluate.py prefetch --recipe code

code: code-data
	python pipeline/align.py --recipe code
	$(DISTILL) --recipe code
	python pipeline/evaluate.py --recipe code
	python pipeline/evaluate.py score --recipe code
	python pipeline/report.py --recipe code

# The study of docs/evidence.md: hours on two cores, stopped and started at will; STUDY=--quick for minutes.
study: $(VENV)/.installed
	bash demo/study/run.sh $(STUDY)

# Time and memory beside a plain implementation (about 20 minutes on two cores), then benchmarks/RESULTS.md.
bench: $(VENV)/.installed
	@bash benchmarks/run_all.sh

lint: $(VENV)/.installed-tests
	ruff check . && ruff format --check .

clean:
	rm -rf .venv .cache runs data
