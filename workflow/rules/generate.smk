# Image+mask pairs in the MVTec layout; the manifest (one row a pair, with sha256) is the declared output.
# run.shards jobs draw the pairs of a category, `gather` writes the manifest.


localrules:
    gather,


RECORDS = f"{SCRATCH}/generate/{{method}}/{ONE}"


rule generate:
    input:
        prepared=rules.prepare.output.manifest,
        model=trained,
        config=GUARD.config_slice(
            "generate/{method}", "run.seed", "run.threads", "generate", "train.methods.{method}"
        ),
    output:
        record=temp(f"{RECORDS}/{{part}}.jsonl"),
    log:
        f"{LOGS}/generate/{{method}}/{ONE}/{{part}}.log",
    benchmark:
        f"{LOGS}/generate/{{method}}/{ONE}/{{part}}.tsv"
    wildcard_constraints:
        part=r"\d+of\d+",
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="12h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        model=model_flag,
        part=lambda wildcards: wildcards.part.replace("of", "/"),
        state=f"{RECORDS}/blocks",
        out=PAIRS,
    message:
        "Generate pairs of {wildcards.dataset} {wildcards.category} with {wildcards.method}, part {params.part}"
    shell:
        "helixbench generate {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "{params.model} "
        "--part {params.part} "
        "--record {output.record:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"


rule gather:
    input:
        records=records_of,
        config=GUARD.config_slice(
            "generate/{method}",
            "run.seed",
            "run.threads",
            "generate",
            "train.methods.{method}",
            result=f"{PAIRS}/manifest.csv",
        ),
    output:
        manifest=f"{PAIRS}/manifest.csv",
    log:
        f"{LOGS}/gather/{{method}}/{ONE}.log",
    benchmark:
        f"{LOGS}/gather/{{method}}/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(1000),
        runtime="30m",
    params:
        state=rules.generate.params.state,
        records=lambda wildcards, input: [f"--record {path}" for path in input.records],
        out=PAIRS,
    message:
        "Gather the pairs of {wildcards.dataset} {wildcards.category} with {wildcards.method}"
    shell:
        "helixbench gather {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "{params.records} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"
