# The validated configuration, the folders of the run, and what the rules ask of them (workflow/lib).

import gc
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from lib import networks
from lib.guard import Guard, parts_of, stopping
from lib.plan import ROMAN, Plan, one_of

from helixbench.config import read_yaml, validate
from helixbench.errors import UserError

# A graph of jobs is made of millions of objects that stay. Looking among them for garbage took a fifth of Snakemake's time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# Jobs find `helixbench` beside the interpreter that runs Snakemake, also when no environment is activated.
shell.prefix(
    "set -euo pipefail; export PYTHONUNBUFFERED=1; "
    f"command -v helixbench > /dev/null || export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
)

PUBLISHED = "resources/published"
ENVIRONMENT = "../../environment.yml"
ONE = "{dataset}/{category}"

with stopping():
    if not Path("params.yaml").is_file():
        raise UserError(
            f"{Path.cwd()}: no params.yaml here; call snakemake in the repository, or with "
            f"-d {workflow.basedir}"
        )
    for overlay in filter(Path.is_file, map(Path, workflow.overwrite_configfiles)):
        read_yaml(overlay)  # Snakemake's reader drops a key that stands twice
    WRITTEN = validate(
        config, " + ".join(["params.yaml", *map(str, workflow.overwrite_configfiles)])
    )
    CONFIG = networks.resolve(WRITTEN)
    RUN = f"results/{CONFIG.run.name}"
    LOGS = f"logs/{CONFIG.run.name}"
    SCRATCH = f"scratch/{CONFIG.run.name}"  # resume state: not declared, survives a failed job
    REPORT = f"{RUN}/report"
    TABLES = f"{RUN}/tables"  # apart from the pictures: text that git keeps
    PREPARED = f"{RUN}/prepare/{ONE}"
    MODEL = f"{RUN}/train/{{method}}/{ONE}"
    PAIRS = f"{RUN}/generate/{{method}}/{ONE}"
    PLAN = Plan(CONFIG, PUBLISHED, RUN)
GUARD = Guard(workflow, CONFIG, RUN, SCRATCH)


def more_each_try(mem_mb: int):
    """Memory of a job [MB]: twice as much in a second try, and so on; how many tries is up to the profile (`retries`)."""
    return lambda wildcards, attempt: attempt * mem_mb


def trained(wildcards) -> list[str]:
    """Manifest of the trained model; nothing for a method that does not learn."""
    return [rules.train.output.manifest] if wildcards.method in PLAN.learning else []


def model_flag(wildcards, input) -> str:
    """The flag that names the trained model, if there is one."""
    return f"--model {Path(input.model[0]).parent}" if input.model else ""


def records_of(wildcards) -> list[str]:
    """Records that the manifest of a category's pairs is made of, one per shard.

    Where pairs are finished, as many as made them: another number of shards makes nothing run again.
    """
    manifest = Path(rules.gather.output.manifest.format(**wildcards)).with_name("manifest.json")
    parts = parts_of(manifest) or CONFIG.run.shards
    return [f"{RECORDS}/{part}of{parts}.jsonl" for part in range(1, parts + 1)]


def pictures_of(wildcards) -> list[str]:
    """Prepared and generated pictures of one data set; of the arms of Table VIII for figure 9."""
    methods = PLAN.arms[8] if wildcards.figure == "9" else PLAN.methods
    return [
        *PLAN.each(rules.prepare.output.manifest, [wildcards.dataset]),
        *PLAN.each(rules.gather.output.manifest, [wildcards.dataset], method=methods),
    ]


def grids(figure: int) -> list[str]:
    """The pages of a picture grid, one per data set."""
    return expand(rules.report_grid.output, figure=figure, dataset=PLAN.grid_datasets(figure))
