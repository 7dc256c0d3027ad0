# Tables with the published, the recomputed and the measured numbers side by side, and picture grids.

SEEDS = CONFIG.detect.localization.seeds
SCORES = each(rules.score.output.scores, METHODS)


def sources(number: int) -> list[str]:
    """Score files that a table is made of."""
    if number == 1:
        return each(rules.score.output.scores, METHODS, datasets=SHOWN[1])
    methods = ARMS.get(number, METHODS)
    return each(rules.detect.output.scores, methods, SEEDS, SHOWN[number]) if methods else []


rule report_table:
    input:
        scores=lambda wildcards: sources(int(wildcards.number)),
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


GRIDS = {"MPDD": 6, "VisA": 7, "MVTec-LOCO": 8}  # figures of the paper; every other data set is drawn as MVTec AD in figure 5


def grids(figure: int) -> list[str]:
    """The pages of a figure, a data set each."""
    names = [name for name in CONFIG.prepare.datasets if GRIDS.get(name, 5) == figure]
    return [path.format(figure=figure, dataset=name) for name in names for path in rules.report_grid.output]


rule report_grid:
    input:
        pictures=pictures_of,
        config=config_slice("report", "train.methods", "prepare.datasets"),
    output:
        grid=f"{REPORT}/figure_{{figure}}_{{dataset}}.png",
        pages=f"{REPORT}/figure_{{figure}}_{{dataset}}.pdf",
    log:
        f"{LOGS}/report_grid/{{figure}}_{{dataset}}.log",
    benchmark:
        f"{LOGS}/report_grid/{{figure}}_{{dataset}}.tsv"
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
