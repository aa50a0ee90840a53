# make demo         installs into .venv, trains cat-eps,dirichlet-ls,lsiw on the embedded digits, evaluates
# make quick        the tests that take no seconds each: about four minutes on two cores
# make test         all tests but the soak: about seven minutes on two cores
# make test K=word  those whose name, file or parameters have the word (pytest -k)
# make soak         long repetitions of the reliability tests: hours
# make check        ruff and mypy; make fix mends what ruff can
# make docs         writes the generated tables and pages anew
# make docs-site    and all pages as a site, dist/docs/docs/site/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One method's cost is no other's: tests run in parallel, each on one thread.
JOBS ?= auto
K ?=
DATA ?=

.PHONY: setup demo quick test check fix docs docs-site bench bench-pace bench-peers bench-growth gpu soak results results-digits-long \
	results-fashion results-overfit results-papers results-overheads results-mutants results-scaling results-robustness \
	results-audit results-evaluation-cost results-pictures results-data-scale \
	results-methods clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "advkit needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev,vision,plot,autoattack,foolbox,timm,sweep]'
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || \
		echo "For the browser test of the report: apt-get install chromium (without it the test is skipped)"
	@touch $@

demo: setup
	@out="runs/demo-$$(date +%Y%m%d-%H%M%S)" && \
	$(BIN)/advkit train --plugins cat-eps,dirichlet-ls,lsiw --dataset digits --eps 0.15 --epochs 12 --out "$$out" && \
	$(BIN)/advkit evaluate "$$out" --attacks clean,pgd-20,cw-20 && \
	printf '\nNext, try:\n  . %s/bin/activate\n  advkit plan --plugins lsiw,awp\n  advkit plugins show cat-eps\n  advkit train --plugins lsiw --eps 0.15\n  less README.md\n' $(VENV)

quick: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not soak and not slow' -k '$(K)'

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -k '$(K)'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/generate.py

# A warning is an error. The pages need nothing from elsewhere, search included.
docs-site: docs
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/site -d dist/doctrees . dist/docs
	@echo dist/docs/docs/site/index.html

bench: setup
	$(BIN)/python results/bench.py

# Pictures decoded in a second, and a run beside busy processes: about five minutes.
bench-pace: setup
	$(BIN)/python results/pace.py

# Beside torchattacks, ART and adv-lib, which are put aside, so that nothing else sees what they need.
bench-peers: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/peers torchattacks==3.5.1 \
		adversarial-robustness-toolbox==1.20.1 adv-lib==0.2.8 scikit-learn joblib cloudpickle threadpoolctl narwhals six tqdm
	PYTHONPATH=$(VENV)/peers $(BIN)/python results/bench_peers.py

# Under seven minutes on a machine with CUDA, a sentence without.
gpu: setup
	$(BIN)/python results/gpu.py

soak: setup
	$(BIN)/python -m pytest -m soak -n $(JOBS) --timeout 3600

results: setup
	$(BIN)/python results/experiments.py digits

# PGD-AT and CAT's budgets for 60 epochs.
results-digits-long: setup
	$(BIN)/python results/experiments.py digits-long

# make results-fashion DATA=FOLDER    where `advkit data prepare fashion-mnist --data-root FOLDER` put it
results-fashion: setup
	@test -n "$(DATA)" || { echo "Say where Fashion-MNIST is: make results-fashion DATA=FOLDER" >&2; exit 2; }
	$(BIN)/python results/experiments.py fashion --data-root "$(DATA)"

# make results-overfit DATA=FOLDER    AWP and ISEAT where PGD-AT overfits, CAT where its budgets have converged
results-overfit: setup
	@test -n "$(DATA)" || { echo "Say where Fashion-MNIST is: make results-overfit DATA=FOLDER" >&2; exit 2; }
	$(BIN)/python results/overfit.py --data-root "$(DATA)"

# make results-papers DATA=FOLDER     what CAT and ISEAT show of themselves, at mini size, and their ablations with
#                                     controls that they lack; two hours on one core
results-papers: setup
	@test -n "$(DATA)" || { echo "Say where Fashion-MNIST is: make results-papers DATA=FOLDER" >&2; exit 2; }
	$(BIN)/python results/cat_figures.py --data-root "$(DATA)"
	$(BIN)/python results/iseat_figures.py --data-root "$(DATA)"
	$(BIN)/python results/ablations.py --data-root "$(DATA)"

results-overheads: setup
	$(BIN)/python results/overheads.py

# Whether the tests of five methods notice changed lines.
results-mutants: setup
	$(BIN)/python results/mutants.py

results-scaling: setup
	$(BIN)/python results/scaling.py

# Evaluates the runs of `make results` and `make results-fashion` with strong attacks.
results-robustness: results results-fashion
	$(BIN)/python results/robustness.py digits
	$(BIN)/python results/robustness.py fashion

results-evaluation-cost: setup
	$(BIN)/python -m pip install --quiet --no-deps torchattacks
	$(BIN)/python results/evaluation_cost.py

# False alarms and misses of the audit on nets that are known to be honest or masked.
results-audit: setup
	$(BIN)/python results/audit_study.py

# make results-methods DATA=FOLDER    the audit and AutoAttack on two nets of each method, and two epochs of sets that
#                                     users ask for; two hours on one core
results-methods: setup
	@test -n "$(DATA)" || { echo "Say where Fashion-MNIST is: make results-methods DATA=FOLDER" >&2; exit 2; }
	$(BIN)/python results/methods.py compositions
	$(BIN)/python results/methods.py audits --data-root "$(DATA)"

# make results-pictures DATA=FOLDER_OR_ZIP    a folder or zip of train|test/CLASS/*
results-pictures: setup
	@test -n "$(DATA)" || { echo "Say where the pictures are: make results-pictures DATA=FOLDER_OR_ZIP" >&2; exit 2; }
	$(BIN)/python results/experiments.py pictures --data-root "$(DATA)"

# Seconds and bytes a step against batch, classes, samples and plugins, with slopes.
bench-growth: setup
	$(BIN)/python results/growth.py

# Seconds and bytes a step against the number of images, up to 50 million that stay in their file.
results-data-scale: setup
	$(BIN)/python results/data_scale.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
