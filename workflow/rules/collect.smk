# Targets that a person types, and that dvc.yaml uses: rules with nothing but inputs.


rule prepared:
    input:
        PLAN.each(rules.prepare.output.manifest),
    message:
        "All categories are prepared"


rule base:
    input:
        BASE_FILES,
    message:
        "All base models are there"


rule models:
    input:
        PLAN.wanted(rules.train.output.manifest, PLAN.learners),
    message:
        "All models are trained"


rule pairs:
    input:
        PLAN.wanted(rules.gather.output.manifest, PLAN.methods),
    message:
        "All pairs are made"


rule scores:
    input:
        PLAN.each(rules.score.output.scores, method=PLAN.methods),
    message:
        "All pairs are scored"


rule classification:
    input:
        PLAN.classification(rules.classify.output.scores),
    message:
        "All classifiers are trained and tested"


rule segmentation:
    input:
        PLAN.segmentation(rules.segment.output.scores),
    message:
        "All segmenters are trained and tested"


rule comparison:
    input:
        PLAN.comparison(rules.compare.output.scores),
    message:
        "All detectors that learn from normals alone are trained and tested"


rule detection:
    input:
        PLAN.wanted(rules.detect.output.scores, PLAN.methods, seed=PLAN.seeds),
        rules.comparison.input,
        rules.classification.input,
        rules.segmentation.input,
    message:
        "All detectors are trained and tested"


rule tables:
    input:
        expand(rules.report_table.output, number=CONFIG.report.tables),
    message:
        "The tables are in {TABLES}"


for table, roman in ROMAN.items():

    rule:
        name:
            f"table_{table}"
        input:
            expand(rules.report_table.output, number=table),
        message:
            f"Table {roman} is in {TABLES}"


rule figure_1:
    input:
        PLAN.each(rules.report_control.output.figure, PLAN.shown[1]) if PLAN.first_dhdiff() else [],
    message:
        "Figure 1 is in {REPORT}/figure_1"


rule figure_3:
    input:
        PLAN.each(rules.report_attention.output.figure, PLAN.shown[8])
        if PLAN.dda_and_plain()
        else [],
    message:
        "Figure 3 is in {REPORT}/figure_3"


for figure in (5, 6, 7, 8, 9):

    rule:
        name:
            f"figure_{figure}"
        input:
            grids(figure),
        message:
            f"Figure {figure} is in {REPORT}"


rule figures:
    input:
        [grids(figure) for figure in (5, 6, 7, 8)],
        [rules.figure_3.input, grids(9)] if 8 in CONFIG.report.tables else [],
    message:
        "The figures are in {REPORT}"


rule plots:
    input:
        [path for path in rules.report_plots.output],
    message:
        "The plots are in {REPORT}"


rule report:
    input:
        rules.report_page.output,
        rules.report_numbers.output,
        rules.report_summary.output,
    message:
        "The page is {REPORT}/index.html"
