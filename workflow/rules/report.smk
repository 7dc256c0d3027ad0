# Tables with the published, the recomputed and the measured numbers side by side, and picture grids.

PUBLISHED = "resources/published"
SEEDS = CONFIG.detect.localization.seeds
SCORES = each(rules.score.output.scores, METHODS)
DETECTION = each(rules.detect.output.scores, METHODS, SEEDS)
CLASSIFICATION = each(rules.classify.output.scores, METHODS, CONFIG.detect.classification.seeds) if CONFIG.detect.classification else []
SEGMENTATION = [
    path.replace("{architecture}", architecture)
    for architecture in (CONFIG.detect.segmentation.networks if CONFIG.detect.segmentation else [])
    for path in each(rules.segment.output.scores.replace("{architecture}", "{{architecture}}"), METHODS, CONFIG.detect.segmentation.seeds)
]
SOURCES = {1: SCORES, 2: DETECTION + CLASSIFICATION + SEGMENTATION, 4: DETECTION}
SOURCES |= {number: each(rules.detect.output.scores, arms, SEEDS) if arms else [] for number, arms in ARMS.items()}


rule report_table:
    input:
        scores=lambda wildcards: SOURCES[int(wildcards.number)],
        published=lambda wildcards: f"{PUBLISHED}/table_{wildcards.number}.csv",
        config=config_slice("report", "train.methods", "train.ablations", "prepare.datasets"),
    output:
        csv=f"{REPORT}/table_{{number}}.csv",
        tex=f"{REPORT}/table_{{number}}.tex",
        md=f"{REPORT}/table_{{number}}.md",
    log:
        f"{LOGS}/report_table/{{number}}.log",
    benchmark:
        f"{LOGS}/report_table/{{number}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime="10m",
    params:
        published=subpath(input.published, parent=True),
        scores=lambda wildcards, input: [f"--scores {path}" for path in input.scores],
        out=subpath(output.csv, parent=True),
    message:
        "Render table {wildcards.number}"
    shell:
        "helixbench report table {wildcards.number} "
        "--config {input.config:q} "
        "--published {params.published:q} "
        "{params.scores} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"


rule report_grid:
    input:
        pictures=pictures_of,
        config=config_slice("report", "train.methods", "prepare.datasets"),
    output:
        grid=f"{REPORT}/figure_5_{{dataset}}.png",
        pages=f"{REPORT}/figure_5_{{dataset}}.pdf",
    log:
        f"{LOGS}/report_grid/{{dataset}}.log",
    benchmark:
        f"{LOGS}/report_grid/{{dataset}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime="10m",
    params:
        results=subpath(output.grid, ancestor=2),
    message:
        "Draw the picture grid of {wildcards.dataset}"
    shell:
        "helixbench report grid {wildcards.dataset} "
        "--config {input.config:q} "
        "--results {params.results:q} "
        "--out {output.grid:q} "
        "2>&1 | tee {log:q}"
