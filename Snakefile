# HelixBench: prepare, train, generate, score, detect, report.
# The rules live in workflow/rules, one file a stage; the configuration is params.yaml plus overlays (--configfile).

from snakemake.utils import min_version

min_version("9.19")


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/guard.smk"


wildcard_constraints:
    dataset=one_of(CONFIG.prepare.datasets),
    category=one_of(c for d in CONFIG.prepare.datasets.values() for c in d.categories),
    method=one_of(EVERYTHING),
    comparator=one_of(COMPARATORS) or "(?!)",
    seed=r"\d+",
    number=r"[1-9]",
    figure=r"[5-9]",
    architecture="segformer|unet|deeplabv3plus",


include: "workflow/rules/fetch.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/detect.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/check.smk"


onsuccess:
    end_of_work()


onerror:
    end_of_work()


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.report.input,
    message:
        "Tables are in {TABLES}, figures in {REPORT}; the page is {REPORT}/index.html"
