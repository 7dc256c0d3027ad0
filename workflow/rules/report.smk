# Tables with the published, the recomputed and the measured numbers side by side, and picture grids.

SCORES = {
    name: getattr(rules, name).output.scores
    for name in ("score", "detect", "compare", "classify", "segment")
}


rule report_table:
    input:
        scores=lambda wildcards: PLAN.table_scores(int(wildcards.number), SCORES),
        published=lambda wildcards: f"{PUBLISHED}/table_{wildcards.number}.csv",
        config=GUARD.config_slice(
            "report_table",
            "report",
            "train.methods",
            "train.ablations",
            "prepare.datasets",
            "detect.comparators",
        ),
    output:
        csv=report(
            f"{TABLES}/table_{{number}}.csv", caption="../report/table.rst", category="Tables"
        ),
        tex=f"{TABLES}/table_{{number}}.tex",
        md=f"{TABLES}/table_{{number}}.md",
        html=f"{TABLES}/table_{{number}}.html",
    log:
        f"{LOGS}/report_table/{{number}}.log",
    benchmark:
        f"{LOGS}/report_table/{{number}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(1000),
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
        config=GUARD.config_slice(
            "report_grid", "report", "train.methods", "train.ablations", "prepare.datasets"
        ),
    output:
        grid=report(
            f"{REPORT}/figure_{{figure}}_{{dataset}}.png",
            caption="../report/grid.rst",
            category="Pairs",
        ),
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
        mem_mb=more_each_try(2000),
        runtime="10m",
    params:
        results=subpath(output.grid, ancestor=2),
        arms=lambda wildcards: "--arms" if wildcards.figure == "9" else "",
    message:
        "Draw the picture grid of {wildcards.dataset}"
    shell:
        "helixbench report grid {wildcards.dataset} "
        "--config {input.config:q} "
        "--results {params.results:q} "
        "--out {output.grid:q} "
        "{params.arms} "
        "2>&1 | tee {log:q}"


rule report_attention:
    input:
        prepared=rules.prepare.output.manifest,
        models=expand(rules.train.output.manifest, method=PLAN.dda_and_plain(), allow_missing=True),
        config=GUARD.config_slice(
            "report_attention",
            "run.seed",
            "run.threads",
            "generate",
            *(f"train.methods.{arm}" for arm in PLAN.dda_and_plain()),
        ),
    output:
        figure=report(
            f"{REPORT}/figure_3/{ONE}.png", caption="../report/attention.rst", category="Attention"
        ),
        pages=f"{REPORT}/figure_3/{ONE}.pdf",
        shares=f"{REPORT}/figure_3/{ONE}.json",
    log:
        f"{LOGS}/report_attention/{ONE}.log",
    benchmark:
        f"{LOGS}/report_attention/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="30m",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        models=lambda wildcards, input: [
            f"{arm}={Path(path).parent}" for arm, path in zip(PLAN.dda_and_plain(), input.models)
        ],
    message:
        "Draw the attention of {wildcards.dataset} {wildcards.category}"
    shell:
        "helixbench report attention {params.models:q} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--threads {params.threads} "
        "--out {output.figure:q} "
        "2>&1 | tee {log:q}"


rule report_control:
    input:
        prepared=rules.prepare.output.manifest,
        model=expand(rules.train.output.manifest, method=PLAN.first_dhdiff(), allow_missing=True),
        config=GUARD.config_slice("report_control", "run.seed", "run.threads", "generate"),
    output:
        figure=report(
            f"{REPORT}/figure_1/{ONE}.png", caption="../report/control.rst", category="Control"
        ),
        pages=f"{REPORT}/figure_1/{ONE}.pdf",
        given=f"{REPORT}/figure_1/{ONE}.json",
    log:
        f"{LOGS}/report_control/{ONE}.log",
    benchmark:
        f"{LOGS}/report_control/{ONE}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="30m",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        model=lambda wildcards, input: Path(input.model[0]).parent,
    message:
        "Draw pairs of {wildcards.dataset} {wildcards.category} under control"
    shell:
        "helixbench report control {params.model:q} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--threads {params.threads} "
        "--out {output.figure:q} "
        "2>&1 | tee {log:q}"


rule report_plots:
    input:
        scores=PLAN.all_scores(SCORES),
        config=GUARD.config_slice(
            "report_plots",
            "report",
            "train.methods",
            "train.ablations",
            "prepare.datasets",
            "detect",
            "detect.comparators",
        ),
    output:
        plots=report(
            [f"{REPORT}/{name}.png" for name in PLAN.plots()],
            caption="../report/plots.rst",
            category="Plots",
        ),
        pages=[f"{REPORT}/{name}.pdf" for name in PLAN.plots()],
        curves=[
            f"{REPORT}/{kind}_{name}.csv"
            for name in PLAN.datasets
            for kind in ("image_roc", "pixel_pr", "pro")
        ],
        cost=f"{REPORT}/cost.csv",
    log:
        f"{LOGS}/report_plots.log",
    benchmark:
        f"{LOGS}/report_plots.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(4000),
        runtime="30m",
    params:
        published=PUBLISHED,
        scores=lambda wildcards, input: [f"--scores {path}" for path in input.scores],
        results=subpath(output.cost, ancestor=2),
        out=subpath(output.cost, parent=True),
    message:
        "Draw results, training, cost, detectors and masks"
    shell:
        "helixbench report plots "
        "--config {input.config:q} "
        "--published {params.published:q} "
        "--results {params.results:q} "
        "{params.scores} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"


rule report_numbers:
    input:
        tables=expand(rules.report_table.output.csv, number=CONFIG.report.tables),
    output:
        numbers=f"{TABLES}/numbers.tex",
    log:
        f"{LOGS}/report_numbers.log",
    benchmark:
        f"{LOGS}/report_numbers.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(1000),
        runtime="30m",
    params:
        tables=lambda wildcards, input: input.tables,
    message:
        "Write every number of the tables as a LaTeX macro"
    shell:
        "helixbench report numbers {params.tables} "
        "--out {output.numbers:q} "
        "2>&1 | tee {log:q}"


rule report_summary:
    input:
        scores=PLAN.all_scores(SCORES),
        config=GUARD.config_slice(
            "report_summary",
            "report",
            "train.methods",
            "train.ablations",
            "prepare.datasets",
            "detect.comparators",
        ),
    output:
        summary=f"{RUN}/summary.json",
    log:
        f"{LOGS}/report_summary.log",
    benchmark:
        f"{LOGS}/report_summary.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(1000),
        runtime="30m",
    params:
        scores=lambda wildcards, input: [f"--scores {path}" for path in input.scores],
    message:
        "Write the averages of all scores"
    shell:
        "helixbench report summary "
        "--config {input.config:q} "
        "{params.scores} "
        "--out {output.summary:q} "
        "2>&1 | tee {log:q}"


rule report_page:
    input:
        tables=expand(rules.report_table.output.html, number=CONFIG.report.tables),
        plots=[f"{REPORT}/{name}.png" for name in PLAN.plots()],
        grids=[
            path
            for figure in (5, 6, 7, 8)
            for path in expand(
                rules.report_grid.output.grid,
                figure=figure,
                dataset=PLAN.grid_datasets(figure),
            )
        ],
        config=GUARD.config_slice(
            "report_page",
            "report",
            "train.methods",
            "train.ablations",
            "prepare.datasets",
            "detect",
            "detect.comparators",
        ),
        jobs=GUARD.job_list(
            PLAN.jobs(
                {
                    **SCORES,
                    **{
                        name: getattr(rules, name).output.manifest
                        for name in ("prepare", "train", "gather")
                    },
                },
                BASE_FILES,
            )
        ),
    output:
        page=report(f"{REPORT}/index.html", caption="../report/page.rst", category="Page"),
    log:
        f"{LOGS}/report_page.log",
    benchmark:
        f"{LOGS}/report_page.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=0,
        mem_mb=more_each_try(8000),
        runtime="30m",
    params:
        tables=lambda wildcards, input: [f"--tables {path}" for path in input.tables],
        figures=lambda wildcards, input: [
            f"--figures {path}" for path in [*input.plots, *input.grids]
        ],
        results=subpath(output.page, ancestor=2),
    message:
        "Write the HTML page"
    shell:
        "helixbench report page "
        "--config {input.config:q} "
        "--results {params.results:q} "
        "{params.tables} "
        "{params.figures} "
        "--out {output.page:q} "
        "2>&1 | tee {log:q}"
