# Raw pictures to working pictures: resize, binarise, split, check for leaks, raw masks, reference crops.


rule draw:
    input:
        config=GUARD.config_slice(
            "draw/{dataset}", "run.seed", "prepare.datasets.{dataset}.procedural"
        ),
    output:
        pictures=f"{RUN}/prepare/raw/{ONE}.csv",
    log:
        f"{LOGS}/draw/{ONE}.log",
    benchmark:
        f"{LOGS}/draw/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(1000),
        runtime="15m",
    params:
        out=f"{RUN}/prepare/raw/{{dataset}}",
    message:
        "Draw the procedural category {wildcards.category}"
    shell:
        "helixbench draw {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"


rule prepare:
    input:
        raw=GUARD.raw_version,
        config=GUARD.config_slice(
            "prepare/{dataset}",
            "prepare.size",
            "prepare.split",
            "prepare.raw_mask_cells",
            *(["prepare.calibration"] if CALIBRATED else []),
            "prepare.datasets.{dataset}.layout",
            "prepare.datasets.{dataset}.procedural",
            optional=(
                "prepare.split_seed",
                "prepare.datasets.{dataset}.bits",
                "prepare.datasets.{dataset}.defects",
                "prepare.datasets.{dataset}.without",
                "prepare.datasets.{dataset}.group",
                "prepare.datasets.{dataset}.strata",
                "prepare.datasets.{dataset}.generator_list",
            ),
            result=f"{PREPARED}/manifest.json",
        ),
    output:
        samples=f"{PREPARED}/samples.csv",
        split=f"{PREPARED}/split.json",
        sheet=report(f"{PREPARED}/sheet.png", caption="../report/sheet.rst", category="Data"),
        manifest=f"{PREPARED}/manifest.json",
    log:
        f"{LOGS}/prepare/{ONE}.log",
    benchmark:
        f"{LOGS}/prepare/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(2000),
        runtime="30m",
    params:
        layout=PLAN.raw_layout,
        raw=PLAN.raw_root,
        out=PREPARED,
    message:
        "Prepare {wildcards.dataset} {wildcards.category}"
    shell:
        "helixbench prepare {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--layout {params.layout} "
        "--raw {params.raw:q} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"
