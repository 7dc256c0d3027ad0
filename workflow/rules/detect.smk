# Detectors trained on the pairs and tested on the held-out real pictures; one job a seed.

DETECTOR = f"{RUN}/detect/{{method}}/{ONE}/seed{{seed}}"
CLASSIFIER = f"{RUN}/detect/{{method}}/{ONE}/classification{{seed}}"
SEGMENTER = f"{RUN}/detect/{{method}}/{ONE}/{{architecture}}{{seed}}"
COMPARATOR = f"{RUN}/detect/{{comparator}}/{ONE}/seed{{seed}}"


rule detect:
    input:
        prepared=rules.prepare.output.manifest,
        pairs=rules.gather.output.manifest,
        config=GUARD.config_slice(
            "detect",
            "run.seed",
            "run.threads",
            "detect.localization",
            *(["detect.false_alarms"] if CALIBRATED else []),
            result=f"{DETECTOR}/manifest.json",
        ),
    output:
        scores=f"{DETECTOR}/scores.csv",
        predictions=report(
            f"{DETECTOR}/predictions.png",
            caption="../report/predictions.rst",
            category="Detectors",
        ),
        manifest=f"{DETECTOR}/manifest.json",
    log:
        f"{LOGS}/detect/{{method}}/{ONE}/seed{{seed}}.log",
    benchmark:
        f"{LOGS}/detect/{{method}}/{ONE}/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="6h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        pairs=subpath(input.pairs, parent=True),
        state=f"{SCRATCH}/detect/{{method}}/{ONE}/seed{{seed}}",
        out=DETECTOR,
    message:
        "Detect on {wildcards.dataset} {wildcards.category} with the pairs of {wildcards.method}, seed {wildcards.seed}"
    shell:
        "helixbench detect {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--pairs {params.pairs:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--seed {wildcards.seed} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"


rule classify:
    input:
        prepared=rules.prepare.output.manifest,
        pairs=rules.gather.output.manifest,
        config=GUARD.config_slice(
            "classify",
            "run.seed",
            "run.threads",
            "detect.classification",
            result=f"{CLASSIFIER}/manifest.json",
            needs=lambda wildcards: networks.check_classifier(CONFIG),
        ),
    output:
        scores=f"{CLASSIFIER}/scores.csv",
        manifest=f"{CLASSIFIER}/manifest.json",
    log:
        f"{LOGS}/classify/{{method}}/{ONE}/seed{{seed}}.log",
    benchmark:
        f"{LOGS}/classify/{{method}}/{ONE}/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="6h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        pairs=subpath(input.pairs, parent=True),
        state=f"{SCRATCH}/classify/{{method}}/{ONE}/seed{{seed}}",
        out=CLASSIFIER,
    message:
        "Classify the defects of {wildcards.dataset} {wildcards.category} with the pairs of {wildcards.method}, seed {wildcards.seed}"
    shell:
        "helixbench classify {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--pairs {params.pairs:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--seed {wildcards.seed} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"


rule segment:
    input:
        prepared=rules.prepare.output.manifest,
        pairs=rules.gather.output.manifest,
        config=GUARD.config_slice(
            "segment",
            "run.seed",
            "run.threads",
            "detect.segmentation",
            result=f"{SEGMENTER}/manifest.json",
        ),
    output:
        scores=f"{SEGMENTER}/scores.csv",
        manifest=f"{SEGMENTER}/manifest.json",
    log:
        f"{LOGS}/segment/{{method}}/{ONE}/{{architecture}}{{seed}}.log",
    benchmark:
        f"{LOGS}/segment/{{method}}/{ONE}/{{architecture}}{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(16000),
        runtime="6h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        pairs=subpath(input.pairs, parent=True),
        state=f"{SCRATCH}/segment/{{method}}/{ONE}/{{architecture}}{{seed}}",
        out=SEGMENTER,
    message:
        "Segment {wildcards.dataset} {wildcards.category} by {wildcards.architecture} with the pairs of {wildcards.method}, seed {wildcards.seed}"
    shell:
        "helixbench segment {wildcards.method} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--pairs {params.pairs:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--architecture {wildcards.architecture} "
        "--seed {wildcards.seed} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"


rule compare:
    input:
        prepared=rules.prepare.output.manifest,
        config=GUARD.config_slice(
            "compare/{comparator}",
            "run.seed",
            "run.threads",
            "detect.localization.pro_limit",
            "detect.localization.pro_thresholds",
            "detect.localization.ground_truth",
            "detect.comparators.{comparator}",
            result=f"{COMPARATOR}/manifest.json",
            needs=lambda wildcards: networks.check_comparator(CONFIG, wildcards.comparator),
        ),
    output:
        scores=f"{COMPARATOR}/scores.csv",
        predictions=report(
            f"{COMPARATOR}/predictions.png",
            caption="../report/predictions.rst",
            category="Detectors",
        ),
        manifest=f"{COMPARATOR}/manifest.json",
    log:
        f"{LOGS}/compare/{{comparator}}/{ONE}/seed{{seed}}.log",
    benchmark:
        f"{LOGS}/compare/{{comparator}}/{ONE}/seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: CONFIG.run.threads
    resources:
        gpu=1,
        mem_mb=more_each_try(24000),
        runtime="12h",
    params:
        threads=CONFIG.run.threads,
        prepared=subpath(input.prepared, parent=True),
        state=f"{SCRATCH}/compare/{{comparator}}/{ONE}/seed{{seed}}",
        out=COMPARATOR,
    message:
        "Train and test {wildcards.comparator} on the normals of {wildcards.dataset} {wildcards.category}, seed {wildcards.seed}"
    shell:
        "helixbench compare {wildcards.comparator} {wildcards.dataset} {wildcards.category} "
        "--config {input.config:q} "
        "--prepared {params.prepared:q} "
        "--state {params.state:q} "
        "--out {params.out:q} "
        "--seed {wildcards.seed} "
        "--threads {params.threads} "
        "2>&1 | tee {log:q}"
