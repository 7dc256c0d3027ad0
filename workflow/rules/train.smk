# Base models and methods, one a category. A killed training resumes from scratch/<run>/train.


rule build_base:
    input:
        prepared=rules.prepare.output.manifest,
        config=GUARD.config_slice(
            "build_base",
            "run.seed",
            "train.base",
            "train.scratch",
            result=f"{RUN}/train/base/{ONE}/manifest.json",
        ),
    output:
        manifest=f"{RUN}/train/base/{ONE}/manifest.json",
    log:
        f"{LOGS}/build_base/{ONE}.log",
    benchmark:
        f"{LOGS}/build_base/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(4000),
        runtime="1h",
    params:
        prepared=subpath(input.prepared, parent=True),
        out=subpath(output.manifest, parent=True),
    message:
        "Build the base model of {wildcards.dataset} {wildcards.category}"
    shell:
        "helixbench base {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--out {params.out:q} "
        "--threads {threads} "
        "2>&1 | tee {log:q}"


JOINT = f"{RUN}/train/base/_joint"  # no data set is called so


rule joint_base:
    input:
        prepared=PLAN.each(rules.prepare.output.manifest) if PLAN.joins_own else [],
        sources=GUARD.joint_sources,
        config=GUARD.config_slice(
            "joint_base",
            "run.seed",
            "run.threads",
            "train.joint",
            result=f"{JOINT}/manifest.json",
        ),
    output:
        manifest=f"{JOINT}/manifest.json",
    log:
        f"{LOGS}/joint_base.log",
    benchmark:
        f"{LOGS}/joint_base.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(32000),
        runtime="24h",
    params:
        threads=CONFIG.run.threads,
        prepared=[
            part
            for folder in (PLAN.each(PREPARED) if PLAN.joins_own else [])
            for part in ("--prepared", folder)
        ],
        state=f"{SCRATCH}/train/base",
        out=subpath(output.manifest, parent=True),
    message:
        "Train one base model over many categories"
    shell:
        "helixbench joint "
        "--config {input.config:q} "
        "{params.prepared:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"


# The folder that a method grows on, and the file that changes when it does.
if CONFIG.train.base == "scratch":
    BASE = BASE_VERSION = rules.build_base.output.manifest
    BASE_FILES = PLAN.each(BASE)
elif CONFIG.train.base == "joint":
    BASE = BASE_VERSION = BASE_FILES = rules.joint_base.output.manifest
else:
    BASE = ancient(f"{CONFIG.train.base_folder}/model_index.json")
    BASE_VERSION = BASE_FILES = GUARD.base_version


rule train:
    input:
        prepared=rules.prepare.output.manifest,
        base=BASE,
        version=BASE_VERSION,
        config=GUARD.config_slice(
            "train/{method}",
            "run.seed",
            "run.threads",
            "train.base",
            "train.pretrained.repository",
            "train.pretrained.revision",
            "train.methods.{method}",
            result=f"{MODEL}/manifest.json",
        ),
    output:
        manifest=f"{MODEL}/manifest.json",
    log:
        f"{LOGS}/train/{{method}}/{ONE}.log",
    benchmark:
        f"{LOGS}/train/{{method}}/{ONE}.tsv"
    wildcard_constraints:
        method=one_of(PLAN.learning),
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(32000),
        runtime="12h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        base=subpath(input.base, parent=True),
        state=f"{SCRATCH}/train/{{method}}/{ONE}",
        out=MODEL,
    message:
        "Train {wildcards.method} on {wildcards.dataset} {wildcards.category}"
    shell:
        "helixbench train {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--base {params.base:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--threads {params.threads} "
        "--processes {resources.gpu} "
        "2>&1 | tee {log:q}"
