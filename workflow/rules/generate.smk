# Image+mask pairs in the MVTec layout; the manifest (one row a pair, with sha256) is the declared output.
# run.shards jobs draw the pairs of a category, `gather` writes the manifest.


localrules:
    gather,


RECORDS = f"{SCRATCH}/generate/{{method}}/{ONE}"


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


rule generate:
    input:
        prepared=rules.prepare.output.manifest,
        model=trained,
        config=GUARD.config_slice(
            "generate/{method}", "run.seed", "generate", "train.methods.{method}"
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
    threads: 8
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="12h",
    params:
        prepared=PREPARED,
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
        "--threads {threads} "
        "2>&1 | tee {log:q}"


rule gather:
    input:
        records=records_of,
        config=GUARD.config_slice(
            "generate/{method}",
            "run.seed",
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
