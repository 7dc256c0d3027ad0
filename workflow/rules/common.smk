# The validated configuration, folders, configuration slices, the check of the inputs, and what the rules ask of them.

import fcntl
import gc
import json
import os
import platform
import re
import shlex
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from helixbench import weights
from helixbench.config import overlay, slice_config, validate
from helixbench.errors import UserError, storage_line
from helixbench.provenance import write_if_changed
from helixbench.report.published import all_datasets_shown

# A graph of jobs is made of millions of objects that stay. Looking among them for garbage took a fifth of Snakemake's time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# Jobs find `helixbench` beside the interpreter that runs Snakemake, also when no environment is activated.
shell.prefix(
    "set -euo pipefail; export PYTHONUNBUFFERED=1; "
    f"command -v helixbench > /dev/null || export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
)


def or_stop(function, *arguments):
    """Call; a UserError, or a full or read-only disk, becomes one line of Snakemake, before any job."""
    try:
        return function(*arguments)
    except UserError as error:
        sys.exit(f"helixbench: {error}")
    except OSError as error:
        line = storage_line(error)
        if not line:
            raise
        sys.exit(f"helixbench: {line}")


def configuration():
    """params.yaml and overlays, validated; `auto` becomes the network that is here: fetching weights reruns the scores."""
    source = " + ".join(["params.yaml", *map(str, workflow.overwrite_configfiles)])
    score = validate(config, source).score
    chosen = {
        "inception_score": weights.choose(
            score.inception_score.network, weights.IS_ORDER, required=False
        ),
        "ic_lpips": weights.choose(score.ic_lpips.network, weights.LPIPS_ORDER, required=False),
    }
    found = {
        name: {**config["score"].get(name, {}), "network": network}
        for name, network in chosen.items()
    }
    return validate(
        {**config, "score": {**config["score"], **found}, "detect": detectors()}, source
    )


def detectors() -> dict:
    """The section `detect` with how its networks start here instead of `auto`: fetching weights reruns them."""
    section = validate(config, "params.yaml").detect
    classifier = section.classification
    changed = (
        {"classification": {"weights": weights.start(classifier.network, classifier.weights)}}
        if classifier
        else {}
    )
    named = {
        key: entry
        for key, entry in (section.comparators or {}).items()
        if hasattr(entry, "backbone")
    }
    if named:
        changed["comparators"] = {
            key: {"weights": weights.start(entry.backbone, entry.weights)}
            for key, entry in named.items()
        }
    return overlay(config["detect"], changed)


def wanted_networks() -> list[str]:
    """Scoring networks of the configuration as written; `auto` is the one that the literature uses."""
    score = validate(config, "params.yaml").score
    pairs = [
        (score.inception_score.network, weights.IS_ORDER),
        (score.ic_lpips.network, weights.LPIPS_ORDER),
    ]
    named = [order[0] if network == "auto" else network for network, order in pairs]
    classifier = validate(config, "params.yaml").detect.classification
    named += [classifier.network] if classifier and classifier.weights != "none" else []
    named += [
        entry.backbone
        for entry in COMPARATORS.values()
        if hasattr(entry, "backbone") and entry.weights != "none"
    ]
    return [network for network in named if network != "random"]


CONFIG = or_stop(configuration)
COMPARATORS = CONFIG.detect.comparators or {}
WANTED_NETWORKS = wanted_networks()
PUBLISHED = "resources/published"
SHOWN = or_stop(all_datasets_shown, PUBLISHED, CONFIG.prepare.datasets)
METHODS = list(CONFIG.train.methods)
EVERYTHING = CONFIG.train.everything  # methods, and the arms of Tables VIII and IX
ARMS = {number: list(CONFIG.train.rows(number).values()) for number in (8, 9)}

RUN = f"results/{CONFIG.run.name}"
LOGS = f"logs/{CONFIG.run.name}"
SCRATCH = f"scratch/{CONFIG.run.name}"  # resume state: not declared, survives a failed job
REPORT = f"{RUN}/report"
TABLES = f"{RUN}/tables"  # apart from the pictures: text that git keeps
ONE = "{dataset}/{category}"
ENVIRONMENT = "../../environment.yml"


DRY = any(re.fullmatch(r"--dry-?run|-[a-z]*n[a-z]*", argument) for argument in sys.argv)


def only_workflow():
    """Hold the run folder for as long as this process lives; None in a dry run beside another workflow.

    Snakemake locks files only when its jobs begin. The slices below are written before that: a second workflow with
    another configuration would change what the jobs of the first one read. The kernel lets go also after a SIGKILL.
    """
    try:
        Path(SCRATCH).mkdir(parents=True, exist_ok=True)
        lock = open(Path(SCRATCH, "workflow.lock"), "a+")
    except OSError:
        # A dry run may look at results that nobody can write. Where it cannot write its own folder, Snakemake fails with a stack.
        if DRY and os.access(".snakemake" if Path(".snakemake").is_dir() else ".", os.W_OK):
            return open(os.devnull)
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        if DRY:
            return None
        raise UserError(
            f"{RUN}: another workflow ({lock.read().strip()}) is making it; wait for its end, or give this one a run.name"
        )
    with suppress(OSError) if DRY else nullcontext():
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
    return lock


# Jobs read the Snakefile, too; their workflow holds the lock.
LOCK = or_stop(only_workflow) if workflow.is_main_process else None

CATEGORIES = [(name, c) for name, d in CONFIG.prepare.datasets.items() for c in d.categories]
SEEDS = CONFIG.detect.localization.seeds
PLOTS = [
    "overview",
    "training",
    "cost",
    *(f"{kind}_{name}" for name in CONFIG.prepare.datasets for kind in ("detector", "masks")),
]
GRIDS = {
    "MPDD": 6,
    "VisA": 7,
    "MVTec-LOCO": 8,
}  # figures of the paper; every other data set is drawn as MVTec AD in figure 5
LEARNING = [name for name, method in EVERYTHING.items() if hasattr(method, "optim")]
LEARNERS = [name for name in METHODS if name in LEARNING]  # without the arms


def one_of(names) -> str:
    """Regular expression that matches exactly these names."""
    return "|".join(sorted(map(re.escape, set(names))))


def each(pattern: str, methods=(), seeds=(), datasets=None) -> list[str]:
    """The pattern filled for every category, of these data sets or of all, and for every method and seed where given."""
    return [
        pattern.format(dataset=d, category=c, method=m, seed=s)
        for m in (methods or [""])
        for d, c in CATEGORIES
        if datasets is None or d in datasets
        for s in (seeds or [""])
    ]


def wanted(pattern: str, seeds=(), methods=None) -> list[str]:
    """The pattern filled for every method (or these) and category, and for the arms of the wanted tables where these show them."""
    methods = METHODS if methods is None else methods
    arms = [
        each(pattern, ARMS[number], seeds, SHOWN[number])
        for number in (8, 9)
        if number in CONFIG.report.tables and ARMS[number]
    ]
    return list(
        dict.fromkeys(
            [
                *(each(pattern, methods, seeds) if methods else []),
                *(path for paths in arms for path in paths),
            ]
        )
    )


def more_each_try(mem_mb: int):
    """Memory of a job [MB]: twice as much in a second try, and so on; how many tries is up to the profile (`retries`)."""
    return lambda wildcards, attempt: attempt * mem_mb


def config_slice(*keys: str) -> str:
    """Write exactly the values at these dotted keys, only when they changed, and return the file as a rule's input.

    A key may hold {method}, {dataset} or {comparator}: one file is written for each, and the pattern is returned.
    """
    pattern = f"{RUN}/config/{'+'.join(sorted(keys))}.json"
    names = [
        {"method": method, "dataset": dataset, "comparator": comparator}
        for method in (EVERYTHING if "{method}" in pattern else [""])
        for dataset in (CONFIG.prepare.datasets if "{dataset}" in pattern else [""])
        for comparator in (COMPARATORS if "{comparator}" in pattern else [""])
    ]
    for name in names:
        values = slice_config(CONFIG, [key.format(**name) for key in keys])
        or_stop(
            write_input, pattern.format(**name), json.dumps(values, indent=2, sort_keys=True) + "\n"
        )
    return pattern


def write_input(path: str, text: str) -> None:
    """Write what jobs read, only when it changed; UserError when another workflow is making this run from what stands there."""
    if (
        workflow.is_main_process
        and LOCK is None
        and Path(path).is_file()
        and Path(path).read_text(encoding="utf-8") != text
    ):
        raise UserError(
            f"{path}: another workflow with another configuration is reading it; wait for its end, or set run.name"
        )
    write_if_changed(path, text)


def raw_root(wildcards) -> str:
    """Folder that holds one raw folder a category."""
    dataset = CONFIG.prepare.datasets[wildcards.dataset]
    return (
        f"{RUN}/prepare/raw/{wildcards.dataset}" if dataset.layout == "procedural" else dataset.root
    )


def raw_layout(wildcards) -> str:
    """Layout of the raw folder, also of one that is drawn."""
    dataset = CONFIG.prepare.datasets[wildcards.dataset]
    return dataset.procedural.layout if dataset.layout == "procedural" else dataset.layout


def raw_version(wildcards) -> str:
    """File that changes when the raw pictures do: the list of what was drawn, or the fingerprint of what is read."""
    if CONFIG.prepare.datasets[wildcards.dataset].layout == "procedural":
        return f"{RUN}/prepare/raw/{ONE}.csv"
    return f"{RUN}/config/data/{ONE}.json"


def trained(wildcards) -> list[str]:
    """Manifest of the trained model; nothing for a method that does not learn."""
    return [f"{RUN}/train/{{method}}/{ONE}/manifest.json"] if wildcards.method in LEARNING else []


def model_flag(wildcards) -> str:
    """The flag that names the trained model, if there is one."""
    folder = f"{RUN}/train/{wildcards.method}/{wildcards.dataset}/{wildcards.category}"
    return f"--model {folder}" if wildcards.method in LEARNING else ""


def records_of(wildcards) -> list[str]:
    """Records that the manifest of a category's pairs is made of, one a shard.

    Where pairs are finished, as many as made them: another number of shards makes nothing run again.
    """
    manifest = Path(
        RUN, "generate", wildcards.method, wildcards.dataset, wildcards.category, "manifest.json"
    )
    try:
        parts = int(json.loads(manifest.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        parts = CONFIG.run.shards
    return expand(
        rules.generate.output.record,
        part=[f"{part}of{parts}" for part in range(1, parts + 1)],
        **wildcards,
    )


def pictures_of(wildcards) -> list[str]:
    """Prepared and generated pictures of one data set; of the arms of Table VIII for figure 9."""
    categories = CONFIG.prepare.datasets[wildcards.dataset].categories
    patterns = [rules.prepare.output.manifest, rules.gather.output.manifest]
    return expand(
        patterns,
        dataset=wildcards.dataset,
        category=categories,
        method=ARMS[8] if wildcards.figure == "9" else METHODS,
    )


def classification() -> list[str]:
    """Scores of the classifiers, where Table II shows the data set."""
    section = CONFIG.detect.classification
    return each(rules.classify.output.scores, METHODS, section.seeds, SHOWN[2]) if section else []


def segmentation() -> list[str]:
    """Scores of the segmenters, where Table II shows the data set."""
    section = CONFIG.detect.segmentation
    return [
        path.replace("{architecture}", architecture)
        for architecture in (section.networks if section else [])
        for path in each(
            rules.segment.output.scores.replace("{architecture}", "{{architecture}}"),
            METHODS,
            section.seeds,
            SHOWN[2],
        )
    ]


def comparison(datasets=None, pattern: str | None = None) -> list[str]:
    """Score files (or another output) of the detectors that learn from normals alone."""
    pattern = (pattern or rules.compare.output.scores).replace("{comparator}", "{method}")
    return [
        path
        for key, entry in COMPARATORS.items()
        for path in each(pattern, [key], entry.seeds, datasets)
    ]


def sources(number: int) -> list[str]:
    """Score files that a table is made of."""
    if number == 1:
        return each(rules.score.output.scores, METHODS, datasets=SHOWN[1])
    methods = ARMS.get(number, METHODS)
    also = (
        [*classification(), *segmentation()]
        if number == 2
        else comparison(SHOWN[number]) if number in (4, 5, 6, 7) else []
    )
    return [
        *(each(rules.detect.output.scores, methods, SEEDS, SHOWN[number]) if methods else []),
        *also,
    ]


def grids(figure: int) -> list[str]:
    """The pages of a figure, a data set each."""
    names = (
        SHOWN[8]
        if figure == 9
        else [name for name in CONFIG.prepare.datasets if GRIDS.get(name, 5) == figure]
    )
    return [
        path.format(figure=figure, dataset=name)
        for name in names
        for path in rules.report_grid.output
    ]


def dda_and_plain() -> list[str]:
    """The two DH-Diffs of figure 3: the rows of Table VIII with both modules and with none; empty without these arms."""
    rows = CONFIG.train.rows(8)
    found = [
        arm
        for words in ("DDA=yes SSM=yes", "DDA=no SSM=no")
        for row, arm in rows.items()
        if words in row
    ]
    return found if len(found) == 2 else []


def first_dhdiff() -> list[str]:
    """The DH-Diff of figure 1: the first method of that kind, in a list; empty without one."""
    return [key for key in METHODS if getattr(CONFIG.train.methods[key], "kind", "") == "dhdiff"][
        :1
    ]


def all_scores() -> list[str]:
    """Score files of all methods, without the arms of the ablations."""
    located = each(rules.detect.output.scores, METHODS, SEEDS)
    return [
        *each(rules.score.output.scores, METHODS),
        *located,
        *comparison(),
        *classification(),
        *segmentation(),
    ]


def all_manifests() -> list[str]:
    """Last files of all jobs of these methods, without the arms of the ablations."""
    return [
        *each(rules.prepare.output.manifest),
        *(each(rules.train.output.manifest, LEARNERS) if LEARNERS else []),
        *each(rules.gather.output.manifest, METHODS),
        *each(rules.detect.output.manifest, METHODS, SEEDS),
        *comparison(pattern=rules.compare.output.manifest),
    ]
