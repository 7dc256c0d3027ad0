# Quality and diversity of the generated pairs: Inception Score, KID, intra-cluster LPIPS, image-mask agreement.


rule score:
    input:
        prepared=rules.prepare.output.manifest,
        pairs=rules.gather.output.manifest,
        config=GUARD.config_slice(
            "score",
            "run.seed",
            "run.threads",
            "score",
            result=f"{RUN}/score/{{method}}/{ONE}.csv",
            needs=lambda wildcards: networks.check_scoring(CONFIG),
        ),
    output:
        scores=f"{RUN}/score/{{method}}/{ONE}.csv",
        record=f"{RUN}/score/{{method}}/{ONE}.json",
    log:
        f"{LOGS}/score/{{method}}/{ONE}.log",
    benchmark:
        f"{LOGS}/score/{{method}}/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(8000),
        runtime="4h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        pairs=subpath(input.pairs, parent=True),
    message:
        "Score {wildcards.method} on {wildcards.dataset} {wildcards.category}"
    shell:
        "helixbench score {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--pairs {params.pairs:q} "
        "--out {output.scores:q} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"
