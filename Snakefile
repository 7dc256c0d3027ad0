# HelixBench: prepare, train, generate, score, detect, report.
# The rules live in workflow/rules, one file a stage; the configuration is params.yaml plus overlays (--configfile).

from snakemake.utils import min_version

min_version("9.19")


configfile: "params.yaml"


include: "workflow/rules/common.smk"


wildcard_constraints:
    dataset=one_of(PLAN.datasets),
    category=one_of(category for _, category in PLAN.categories),
    method=one_of(PLAN.everything),
    comparator=one_of(PLAN.comparators),
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
    GUARD.end()


onerror:
    GUARD.end()


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.report.input,
    message:
        "Tables are in {TABLES}, figures in {REPORT}; the page is {REPORT}/index.html"
