# make demo   install, read a drawn category in every raw layout (config/layouts.yaml), and run the whole workflow on the
#             embedded default (config/mini.yaml)
# make test   install, lint and run the test suite
# make faults  the tests of kills, full disks and damaged files, with more than 50 kills (about a quarter of an hour)
# make restore  after a clone or checkout: fetch what DVC recorded of a run (RUN=mini; the paper run without) and tell
#             Snakemake that it is up to date
# make lock   write requirements.lock, with the hashes of all files, and environment.yml from what is installed in .venv
# make clean  remove what runs wrote; results/measured stays

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
EXTRAS := .venv/extras/bitsandbytes
SLURM := $(if $(CI),.venv/slurm)

.PHONY: demo test faults bottle restore lock clean

demo: $(INSTALLED)
	$(BIN)/snakemake --cores all prepared --configfile config/mini.yaml config/layouts.yaml
	$(BIN)/snakemake --cores all --configfile config/mini.yaml
	@echo "Page:     results/mini/report/index.html"
	@echo "Tables:   results/mini/tables/table_<n>.md (also .csv, .tex, .html)"
	@echo "Pictures: results/mini/report/figure_5_Procedural.png, results/layouts/prepare/*/*/sheet.png"

test: $(INSTALLED) $(EXTRAS) $(SLURM)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/snakefmt --check Snakefile workflow > .venv/lint.log 2>&1 || { cat .venv/lint.log; exit 1; }
	@$(BIN)/snakemake --lint > .venv/lint.log 2>&1 || { cat .venv/lint.log; exit 1; }
	$(BIN)/python -m pytest

bottle: $(INSTALLED)
	$(BIN)/snakemake --cores all --configfile config/bottle.yaml

# Nothing is touched unless it is what DVC recorded for these very parameters: --touch would pass stale files for new.
RUN ?= paper
OVERLAY ?= $(if $(filter paper,$(RUN)),params.yaml,config/$(RUN).yaml)
restore: $(INSTALLED)
	$(BIN)/dvc pull --with-deps report@$(RUN)
	@$(BIN)/dvc status --quiet --with-deps report@$(RUN) || { $(BIN)/dvc status --with-deps report@$(RUN); \
		echo "restore: files or parameters are not those that DVC recorded; nothing was touched"; exit 1; }
	$(BIN)/snakemake --cores 1 --quiet all --touch --forceall --configfile $(OVERLAY)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 found; install it, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# diffusers imports bitsandbytes wherever it is installed, which every start would pay for: it is kept aside for its one test.
$(EXTRAS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/extras --upgrade bitsandbytes==0.50.2
	@touch $@

# A test starts a Slurm of its own from Debian's packages. CI installs them where it may; elsewhere the test says that they are missing.
$(SLURM): $(INSTALLED)
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld || { export DEBIAN_FRONTEND=noninteractive; test "$$(id -u)" = 0 \
		&& timeout -k 5 60 apt-get update && timeout -k 5 120 apt-get install -y --no-install-recommends slurm-wlm munge; }; } \
		< /dev/null > .venv/slurm.log 2>&1 && touch $@ || true

faults: $(INSTALLED)
	$(BIN)/python benchmarks/faults.py

# Packages that exist only for Linux get a marker, so that the same file installs elsewhere.
lock:
	$(BIN)/pip freeze --all --exclude helixbench --exclude pip --exclude wheel \
	| sed -E "/^(cuda-|nvidia-|triton==)/s/$$/ ; sys_platform == 'linux'/" > .venv/pins
	$(PYTHON) -m venv .venv/lock && .venv/lock/bin/pip install --quiet uv==0.13.9
	.venv/lock/bin/uv pip compile .venv/pins --quiet --no-deps --universal --python-version 3.11.7 --generate-hashes \
		--no-header --no-annotate --output-file requirements.lock
	sed -i '/^  - pip:/q' environment.yml
	sed -n "s/ *\\\\$$//; /^[^ ]/s/^/      - /p" requirements.lock >> environment.yml

clean:
	rm -rf scratch logs .snakemake
	mkdir -p results
	find results -mindepth 1 -maxdepth 1 ! -name measured ! -name .gitkeep -exec rm -rf {} +
