# What is not in the repository: targets that a person with network types once. Nothing else downloads anything.


localrules:
    fetch_base,
    fetch_weights,


rule fetch_base:
    log:
        f"{LOGS}/fetch_base.log",
    conda:
        ENVIRONMENT
    params:
        repository=CONFIG.train.pretrained.repository,
        revision=CONFIG.train.pretrained.revision,
        out=CONFIG.train.pretrained.path,
    message:
        "Fetch {params.repository} into {params.out}"
    shell:
        "helixbench fetch base "
        "--repository {params.repository:q} "
        "--revision {params.revision:q} "
        "--out {params.out:q} "
        "2>&1 | tee {log:q}"


rule fetch_weights:
    log:
        f"{LOGS}/fetch_weights.log",
    conda:
        ENVIRONMENT
    params:
        networks=networks.named(WRITTEN),
    message:
        "Fetch weights of {params.networks}"
    shell:
        "helixbench fetch weights {params.networks} 2>&1 | tee {log:q}"
