# Image+mask pairs in the MVTec layout; the manifest (one row a pair, with sha256) is the declared output.


rule generate:
    input:
        prepared=rules.prepare.output.manifest,
        model=trained,
        config=config_slice("run.seed", "generate", "train.methods.{method}"),
    output:
        manifest=f"{RUN}/generate/{{method}}/{ONE}/manifest.csv",
    log:
        f"{LOGS}/generate/{{method}}/{ONE}.log",
    benchmark:
        f"{LOGS}/generate/{{method}}/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: 8
    resources:
        gpu=1,
        mem_mb=16000,
        runtime="12h",
    params:
        prepared=subpath(input.prepared, parent=True),
        model=model_flag,
        state=f"{SCRATCH}/generate/{{method}}/{ONE}",
        out=subpath(output.manifest, parent=True),
    message:
        "Generate pairs of {wildcards.dataset} {wildcards.category} with {wildcards.method}"
    shell:
        "helixbench generate {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "{params.model} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--threads {threads} "
        "2>&1 | tee {log:q}"
