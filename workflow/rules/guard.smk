# What stops a run before any job: a clock that went back, inputs that are not there, results of other values.
# Comes before the rules: they write the configuration slices, which a run that is stopped must leave as they are.

import csv
import time

from helixbench.config import digest

CLOCK = Path(SCRATCH, "clock")  # its modification time: when this run was last at work


def end_of_work() -> None:
    """Set the clock; what stopped the run may be the disk that it is on."""
    with suppress(OSError):
        CLOCK.touch()


def check_clock() -> None:
    """The clock has not gone back since the last run of this folder: what changes now would look older than what was made of it."""
    behind = CLOCK.stat().st_mtime - time.time() if CLOCK.is_file() else 0
    if behind > 120 and not {"--touch", "-t"} & set(sys.argv):
        raise UserError(
            f"the clock is {behind / 3600:.1f} h behind the last run of {RUN}: what changes now would look old and be kept. Set it "
            "right or, if it is right now, run the same command once with --touch --forceall"
        )
    with suppress(OSError) if DRY else nullcontext():
        for file in Path(RUN, "config").rglob("*.json"):
            if (
                file.stat().st_mtime > time.time()
            ):  # Snakemake deletes what it touches and then finds older than its input
                file.touch()
        CLOCK.parent.mkdir(parents=True, exist_ok=True)
        CLOCK.touch()


def check_inputs() -> None:
    """Raw pictures and all weights are there; their fingerprints become inputs of `prepare` and `train`."""
    from helixbench.datasets import fingerprint
    from helixbench.datasets.layout import Layout

    layouts = {name: Layout.named(d.layout) for name, d in CONFIG.prepare.datasets.items()}
    read = {name: d for name, d in CONFIG.prepare.datasets.items() if not layouts[name].drawn}
    for name, dataset in read.items():
        layouts[name].check(Path(dataset.root), dataset.categories, name)
    base = Path(CONFIG.train.pretrained.path)
    downloaded = CONFIG.train.base != "scratch" and LEARNING
    if downloaded and not (base / "model_index.json").is_file():
        raise UserError(
            f"{base}: no model_index.json; run `snakemake --cores 1 fetch_base` (4 GB), put a diffusers-format Stable Diffusion "
            "v1.5 there (unet/ vae/ text_encoder/ tokenizer/ scheduler/), name its folder in train.pretrained.path, or set "
            "train.base: scratch"
        )
    networks = CONFIG.score.inception_score.network, CONFIG.score.ic_lpips.network
    for network, order in zip(networks, (weights.IS_ORDER, weights.LPIPS_ORDER)):
        weights.choose(network, order)
    classifier = CONFIG.detect.classification
    if classifier and classifier.weights == "imagenet":
        weights.choose(classifier.network, ())
    for name, dataset in read.items():
        for category in dataset.categories:
            cache = Path(SCRATCH, "fingerprints", name, f"{category}.json")
            shared = layouts[name].shared_files(Path(dataset.root), category)
            text = fingerprint.fingerprint(Path(dataset.root), category, cache, shared)
            write_input(f"{RUN}/config/data/{name}/{category}.json", text)
    if downloaded:
        cache = Path(SCRATCH, "fingerprints", "base.json")
        text = fingerprint.fingerprint(base.parent, base.name, cache, wanted=lambda name: True)
        write_input(f"{RUN}/config/base.json", text)


def last_files() -> list[str]:
    """The files that record with which values a job was done, of all jobs that make pictures, models or numbers."""
    learned = wanted(rules.train.output.manifest, methods=LEARNERS)
    files = [
        *each(rules.prepare.output.manifest),
        *(
            each(rules.train_base.output.manifest)
            if CONFIG.train.base == "scratch" and learned
            else []
        ),
        *learned,
        *wanted(rules.gather.output.manifest),
        *wanted(rules.detect.output.manifest, SEEDS),
        *comparison(),
        *classification(),
        *segmentation(),
    ]
    return [
        *(str(Path(file).with_name("manifest.json")) for file in files),
        *each(rules.score.output.scores, METHODS),
    ]


def values_now(file: Path) -> tuple[bool, Path]:
    """Whether a file of `last_files` records the values of the configuration, and the slice that holds them."""
    if file.suffix == ".csv":
        with open(file, newline="", encoding="utf-8") as handle:
            keys, recorded = ["run.seed", "score"], next(csv.DictReader(handle))["config_digest"]
    else:
        record = json.loads(file.read_text(encoding="utf-8"))
        keys, recorded = record["config"], record["config_digest"]
    same = recorded == digest(json.loads(json.dumps(slice_config(CONFIG, keys))))
    return same, Path(RUN, "config", "+".join(sorted(keys)) + ".json")


def check_results(touch: bool) -> None:
    """Stop where a result of other values would pass for new: it is to be touched, or is newer than what it depends on.

    Modification times lie after `dvc pull`, `rsync` or `cp`; what DVC then locks would not be what its parameters say.
    """
    stale = []
    for file in map(Path, last_files()):
        try:
            same, values = values_now(file)
            if not same and (touch or file.stat().st_mtime > values.stat().st_mtime):
                stale.append(file)
        except (FileNotFoundError, NotADirectoryError):
            pass  # not made yet
        except (ValueError, KeyError, TypeError, StopIteration):
            stale.append(file)
    if stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise UserError(
            f"{stale[0]}{more}: damaged, or made with other parameters than these; go back to those, or delete it to make it again"
        )


# These look at the rules only, or bring what is missing.
LOOKING = {"--lint", "--list-rules", "--list-target-rules", "fetch_base", "fetch_weights"} & set(
    sys.argv
)
if not LOOKING:
    if workflow.is_main_process:
        or_stop(check_clock)
    or_stop(check_inputs)
