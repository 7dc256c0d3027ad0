# Targets that a person types, and that dvc.yaml uses: rules with nothing but inputs.


WANTED = [*METHODS, *WANTED_ARMS]


localrules:
    prepared,
    base,
    models,
    pairs,
    scores,
    detection,
    classification,
    segmentation,
    tables,
    figures,
    table_1,
    table_2,
    table_4,
    table_8,
    table_9,
    figure_5,


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
        each(rules.train.output.manifest, [*filter(LEARNING.count, WANTED)]) if LEARNING else [],
    message:
        "All models are trained"


rule pairs:
    input:
        each(rules.generate.output.manifest, WANTED),
    message:
        "All pairs are made"


rule scores:
    input:
        SCORES,
    message:
        "All pairs are scored"


rule classification:
    input:
        CLASSIFICATION,
    message:
        "All classifiers are trained and tested"


rule segmentation:
    input:
        SEGMENTATION,
    message:
        "All segmenters are trained and tested"


rule detection:
    input:
        each(rules.detect.output.scores, WANTED, SEEDS),
        CLASSIFICATION,
        SEGMENTATION,
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


rule table_4:
    input:
        expand(rules.report_table.output, number=4),
    message:
        "Table IV is in {REPORT}"


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


rule figure_5:
    input:
        expand(rules.report_grid.output, dataset=CONFIG.prepare.datasets),
    message:
        "Figure 5 is in {REPORT}"


rule figures:
    input:
        rules.figure_5.input,
    message:
        "The figures are in {REPORT}"
