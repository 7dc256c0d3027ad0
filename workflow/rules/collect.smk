# Targets that a person types, and that dvc.yaml uses: rules with nothing but inputs.


localrules:
    prepared,
    base,
    models,
    pairs,
    scores,
    detection,
    classification,
    segmentation,
    comparison,
    tables,
    figures,
    table_1,
    table_2,
    table_3,
    table_4,
    table_5,
    table_6,
    table_7,
    table_8,
    table_9,
    plots,
    report,
    figure_1,
    figure_3,
    figure_5,
    figure_6,
    figure_7,
    figure_8,
    figure_9,


rule prepared:
    input:
        each(rules.prepare.output.manifest),
    message:
        "All categories are prepared"


rule base:
    input:
        each(BASE),
    message:
        "All base models are there"


rule models:
    input:
        wanted(rules.train.output.manifest, methods=LEARNERS),
    message:
        "All models are trained"


rule pairs:
    input:
        wanted(rules.gather.output.manifest),
    message:
        "All pairs are made"


rule scores:
    input:
        each(rules.score.output.scores, METHODS),
    message:
        "All pairs are scored"


rule classification:
    input:
        classification(),
    message:
        "All classifiers are trained and tested"


rule segmentation:
    input:
        segmentation(),
    message:
        "All segmenters are trained and tested"


rule comparison:
    input:
        comparison(),
    message:
        "All detectors that learn from normals alone are trained and tested"


rule detection:
    input:
        wanted(rules.detect.output.scores, SEEDS),
        comparison(),
        classification(),
        segmentation(),
    message:
        "All detectors are trained and tested"


rule table_1:
    input:
        expand(rules.report_table.output, number=1),
    message:
        "Table I is in {REPORT}"


rule table_2:
    input:
        expand(rules.report_table.output, number=2),
    message:
        "Table II is in {REPORT}"


rule table_3:
    input:
        expand(rules.report_table.output, number=3),
    message:
        "Table III is in {REPORT}"


rule table_4:
    input:
        expand(rules.report_table.output, number=4),
    message:
        "Table IV is in {REPORT}"


rule table_5:
    input:
        expand(rules.report_table.output, number=5),
    message:
        "Table V is in {REPORT}"


rule table_6:
    input:
        expand(rules.report_table.output, number=6),
    message:
        "Table VI is in {REPORT}"


rule table_7:
    input:
        expand(rules.report_table.output, number=7),
    message:
        "Table VII is in {REPORT}"


rule table_8:
    input:
        expand(rules.report_table.output, number=8),
    message:
        "Table VIII is in {REPORT}"


rule table_9:
    input:
        expand(rules.report_table.output, number=9),
    message:
        "Table IX is in {REPORT}"


rule tables:
    input:
        expand(rules.report_table.output, number=CONFIG.report.tables),
    message:
        "The tables are in {REPORT}"


rule figure_1:
    input:
        each(rules.report_control.output.figure, datasets=SHOWN[1]) if first_dhdiff() else [],
    message:
        "Figure 1 is in {REPORT}/figure_1"


rule figure_3:
    input:
        each(rules.report_attention.output.figure, datasets=SHOWN[8]) if dda_and_plain() else [],
    message:
        "Figure 3 is in {REPORT}/figure_3"


rule figure_5:
    input:
        grids(5),
    message:
        "Figure 5 is in {REPORT}"


rule figure_6:
    input:
        grids(6),
    message:
        "Figure 6 is in {REPORT}"


rule figure_7:
    input:
        grids(7),
    message:
        "Figure 7 is in {REPORT}"


rule figure_8:
    input:
        grids(8),
    message:
        "Figure 8 is in {REPORT}"


rule figure_9:
    input:
        grids(9) if ARMS[8] else [],
    message:
        "Figure 9 is in {REPORT}"


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


rule figures:
    input:
        [grids(figure) for figure in (5, 6, 7, 8)],
        rules.figure_3.input if 8 in CONFIG.report.tables else [],
        rules.figure_9.input if 8 in CONFIG.report.tables else [],
    message:
        "The figures are in {REPORT}"


if workflow.is_main_process and not LOOKING:
    or_stop(check_results, bool({"--touch", "-t"} & set(sys.argv)))
