"""The paper run on paper: jobs, steps, pairs, GPU-hours and disk of a configuration. Counts are
exact, costs are given.

GPU-hours = (training steps x step + pairs x pair (drawn, where the method does not learn) + scored
pairs x embed + detector steps x detector_step + comparators x compare + jobs x start) / 3600. On G
GPUs a run that starts a ready job wherever a GPU is free takes at least max(W / G, C) and at most W
/ G + (1 - 1 / G) C, with the work W and the longest chain C (Graham, 1966). Disk: the counts times
results/measured/disk.csv.

    python benchmarks/paper_cost.py [--step 0.24 --pair 0.05 --drawn 0.01 --embed 0.01
    --detector-step 0.05 --compare 600 --start 2]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from helixbench.config import load
from helixbench.methods.dhdiff.config import DHDiff

ROOT = Path(__file__).resolve().parents[1]
GPUS = (1, 8, 64)
DEFECT_TYPES = {
    # Bergmann et al., CVPR 2019: 73
    "bottle": 3,
    "cable": 8,
    "capsule": 5,
    "carpet": 5,
    "grid": 5,
    "hazelnut": 4,
    "leather": 5,
    "metal_nut": 4,
    "pill": 7,
    "screw": 5,
    "tile": 5,
    "toothbrush": 1,
    "transistor": 4,
    "wood": 5,
    "zipper": 7,
    # Jezek et al., ICUMT 2021: 11
    "bracket_black": 2,
    "bracket_brown": 2,
    "bracket_white": 2,
    "connector": 1,
    "metal_plate": 3,
    "tubes": 1,
}
TYPES_OF_ALL = {"VisA": 1, "MVTec-LOCO": 2}
"""VisA's table names one label, anomaly; LOCO (Bergmann et al., IJCV 2022) has logical and
structural anomalies."""


def types(dataset: str, category: str) -> int:
    return TYPES_OF_ALL.get(dataset) or DEFECT_TYPES[category]


def count(config, methods: list[str]) -> dict[str, object]:
    """Jobs, steps and pairs of these methods; of the arms of the ablations, too, where DH-Diff is
    one of them."""
    datasets = config.prepare.datasets
    everywhere = [
        (name, category) for name, dataset in datasets.items() for category in dataset.categories
    ]
    mvtec = [
        pair for pair in everywhere if pair[0] == "MVTec-AD"
    ]  # Tables II, VIII and IX show it alone
    arms = list(config.train.arms) if "dhdiff" in methods else []
    places = {name: everywhere for name in methods} | {name: mvtec for name in arms}
    section, steps, pairs = config.train.everything, {}, {}
    for name, where in places.items():
        pairs[name] = sum(types(*place) for place in where) * config.generate.pairs
        if hasattr(section[name], "optim"):
            steps[name] = section[name].optim.steps * len(where)
    detect = config.detect
    located, by_table_2 = sum(map(len, places.values())), len(mvtec) * len(methods)
    networks = len(detect.segmentation.networks)
    detector_steps = {
        "detect": located * detect.localization.optim.steps,
        "classify": sum(types(*place) for place in mvtec)
        * len(methods)
        * detect.classification.optim.steps,  # for each type
        "segment": by_table_2 * networks * detect.segmentation.optim.steps,
    }
    jobs = {
        "prepare": len(everywhere),
        "train": sum(len(places[name]) for name in steps),
        "generate": located,
        "score": len(methods) * len(everywhere),
        "detect": located,
        "classify": by_table_2,
        "segment": by_table_2 * networks,
        "compare": len(everywhere) * len(detect.comparators),
    }
    return {
        "jobs": jobs,
        "steps": steps,
        "pairs": pairs,
        "scored": sum(pairs[name] for name in methods),
        "detector_steps": detector_steps,
        "most_types": max(types(*place) for place in everywhere),
        "most_steps": max(section[name].optim.steps for name in steps),
        "most_detector_steps": max(
            detect.localization.optim.steps,
            detect.segmentation.optim.steps,
            max(types(*place) for place in mvtec) * detect.classification.optim.steps,
        ),
        "dhdiff_models": sum(
            len(places[name]) for name in steps if isinstance(section[name], DHDiff)
        ),
        "sd_models": sum(
            len(places[name])
            for name in steps
            if not isinstance(section[name], DHDiff) and name != "dfmgan"
        ),
        "dfmgan_models": sum(len(places[name]) for name in steps if name == "dfmgan"),
    }


def hours(found: dict, config, cost: argparse.Namespace) -> tuple[dict[str, float], float]:
    """GPU-hours by stage, and the longest chain of jobs [h]."""
    jobs = found["jobs"]
    work = {
        "train": sum(found["steps"].values()) * cost.step,
        "generate": sum(
            n * (cost.pair if name in found["steps"] else cost.drawn)
            for name, n in found["pairs"].items()
        ),
        "score": found["scored"] * cost.embed,
        **{name: steps * cost.detector_step for name, steps in found["detector_steps"].items()},
        "compare": jobs["compare"] * cost.compare,
    }
    pairs = found["most_types"] * config.generate.pairs
    chain = found["most_steps"] * cost.step + pairs * cost.pair
    chain += (
        max(found["most_detector_steps"] * cost.detector_step, pairs * cost.embed) + 3 * cost.start
    )
    return {
        name: (seconds + jobs[name] * cost.start) / 3600 for name, seconds in work.items()
    }, chain / 3600


def disk(found: dict) -> list[tuple[str, float, float]]:
    """What, files and bytes, from the measured sizes."""
    with (ROOT / "results/measured/disk.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    size = {what: (float(row["files"] or 0), float(row["bytes"])) for what, row in rows.items()}
    manifests = round(
        float(rows["manifest, a pair"]["files"]) * int(rows["manifest, a pair"]["n"])
    )  # of a job, however many pairs
    pairs = sum(found["pairs"].values())
    of = lambda what, number: (size[what][0] * number, size[what][1] * number)
    models = [
        ("dhdiff_models", "trained model of dhdiff"),
        ("sd_models", "Stable Diffusion 1.5"),
        ("dfmgan_models", "trained model of dfmgan"),
    ]
    return [
        ("pictures of the pairs", *of("picture of a pair", pairs)),
        ("masks of the pairs", *of("mask of a pair", pairs)),
        (
            "manifests of the pairs",
            manifests * found["jobs"]["generate"],
            of("manifest, a pair", pairs)[1],
        ),
        (
            "prepared pictures, if all categories were like bottle",
            *of("prepared category", found["jobs"]["prepare"]),
        ),
        ("trained models, weights alone", 0, sum(of(what, found[key])[1] for key, what in models)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (
        ("step", 0.24),
        ("pair", 0.05),
        ("drawn", 0.01),
        ("embed", 0.01),
        ("detector-step", 0.05),
        ("compare", 600.0),
        ("start", 2.0),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help="[s]")
    cost = parser.parse_args()
    config = load(ROOT / "params.yaml")
    learned = [name for name, method in config.train.methods.items() if hasattr(method, "optim")]
    scopes = {"all methods": list(config.train.methods)}
    scopes["without the rivals that learn"] = [
        name for name in config.train.methods if name == "dhdiff" or name not in learned
    ]
    everything = count(config, scopes["all methods"])
    print("| stage | jobs | counts | of |\n|---|---|---|---|")
    units = {
        "train": (sum(everything["steps"].values()), "training steps"),
        "generate": (sum(everything["pairs"].values()), "pairs"),
    }
    units |= {
        "score": (everything["scored"], "pairs embedded"),
        "compare": (everything["jobs"]["compare"], "jobs"),
    }
    units |= {
        name: (number, "detector steps") for name, number in everything["detector_steps"].items()
    }
    for stage, number in everything["jobs"].items():
        amount, unit = units.get(stage, (number, "categories"))
        print(f"| `{stage}` | {number:,} | {amount:,} | {unit} |")
    print("\n| trained | jobs | steps | GPU-hours for each 0.1 s of a step |\n|---|---|---|---|")
    section = config.train.everything
    trained = [(name, everything["steps"][name], section[name].optim.steps) for name in learned]
    arms = [name for name in everything["steps"] if name not in learned]
    if arms:
        trained.append(
            (
                "arms of DH-Diff",
                sum(everything["steps"][name] for name in arms),
                section[arms[0]].optim.steps,
            )
        )
    for name, steps, each in trained:
        print(f"| {name} | {steps // each} | {steps:,} | {steps * 0.1 / 3600:,.0f} |")
    given = ", ".join(f"{name.replace('_', ' ')} {value:g} s" for name, value in vars(cost).items())
    stages = ("train", "generate", "score", "detect", "classify", "segment", "compare")
    print(f"\n{given}\n")
    print("| GPU-hours | " + " | ".join(stages) + " | all |\n|---|" + "---|" * (len(stages) + 1))
    walls = []
    for scope, methods in scopes.items():
        found = count(config, methods)
        work, chain = hours(found, config, cost)
        total = sum(work.values())
        print(
            f"| {scope} | "
            + " | ".join(f"{work[stage]:,.0f}" for stage in stages)
            + f" | {total:,.0f} |"
        )
        bounds = [
            (max(total / gpus, chain), total / gpus + (1 - 1 / gpus) * chain) for gpus in GPUS
        ]
        cells = [
            f"{low:,.1f}" if f"{low:,.1f}" == f"{high:,.1f}" else f"{low:,.1f} to {high:,.1f}"
            for low, high in bounds
        ]
        walls.append(f"| {scope} | {chain:,.1f} | " + " | ".join(cells) + " |")
    print(
        "\n| hours on the clock | longest chain | "
        + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS)
        + " |\n|---|---|---|---|---|"
    )
    print("\n".join(walls))
    print("\n| on the disk | files | GB |\n|---|---|---|")
    rows = disk(everything)
    for what, files, size in [
        *rows,
        ("sum", sum(row[1] for row in rows), sum(row[2] for row in rows)),
    ]:
        print(f"| {what} | {files:,.0f} | {size / 1e9:,.1f} |")


if __name__ == "__main__":
    main()
