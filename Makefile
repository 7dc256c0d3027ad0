# make demo   install and run the whole workflow on the embedded default (config/mini.yaml)
# make test   install, lint and run the test suite
# make lock   write requirements.lock and environment.yml from what is installed in .venv
# make clean  remove what runs wrote; results/measured stays

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test bottle lock clean

demo: $(INSTALLED)
	$(BIN)/snakemake --cores all --configfile config/mini.yaml
	@echo "Tables:   results/mini/report/table_1.md table_2.md table_4.md (also .csv and .tex)"
	@echo "Pictures: results/mini/report/figure_5_Procedural.png"
	@echo "          results/mini/prepare/Procedural/*/sheet.png"
	@echo "          results/mini/detect/*/Procedural/*/seed0/predictions.png"

test: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/snakefmt --check Snakefile workflow > .venv/lint.log 2>&1 || { cat .venv/lint.log; exit 1; }
	@$(BIN)/snakemake --lint > .venv/lint.log 2>&1 || { cat .venv/lint.log; exit 1; }
	$(BIN)/python -m pytest

bottle: $(INSTALLED)
	$(BIN)/snakemake --cores all --configfile config/bottle.yaml

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 found; install Python 3.11 or name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"$(PYTHON) is Python {v}; 3.11 is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

lock:
	$(BIN)/python docs/lock.py

clean:
	rm -rf results/[!m]* results/m[!e]* scratch logs .snakemake
