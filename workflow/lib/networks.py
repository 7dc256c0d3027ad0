"""Networks from elsewhere: which one `auto` means on this machine, and whether those that a job
needs are here.
"""

from __future__ import annotations

from helixbench import weights
from helixbench.schema import Config


def resolve(config: Config) -> Config:
    """The configuration with the network that is here in the place of every `auto`.

    Slices hold the answer, so that fetching weights makes scores and detectors run again.
    """
    score = config.score
    inception = weights.preferred(score.inception_score.network, weights.IS_ORDER)
    lpips = weights.preferred(score.ic_lpips.network, weights.LPIPS_ORDER)
    chosen = {
        "inception_score": score.inception_score.model_copy(update={"network": inception}),
        "ic_lpips": score.ic_lpips.model_copy(update={"network": lpips}),
    }
    started = {}
    if config.detect.classification:
        started["classification"] = _started(config.detect.classification, "network")
    if config.detect.comparators:
        started["comparators"] = {
            key: _started(entry, "backbone") for key, entry in config.detect.comparators.items()
        }
    return config.model_copy(
        update={
            "score": score.model_copy(update=chosen),
            "detect": config.detect.model_copy(update=started),
        }
    )


def _started(section, key: str):
    """A detector's section with the network that is here and its start, for `auto`."""
    if getattr(section, "weights", "") != "auto":
        return section
    network, start = weights.preferred_start(getattr(section, key), "auto", _fixed(section))
    return section.model_copy(update={key: network, "weights": start})


def _fixed(section) -> bool:
    return getattr(section, "needs_resnet", False)


def named(config: Config) -> list[str]:
    """Networks whose weights a configuration can use, as `fetch_weights` fetches them.

    config: as written; `auto` is the network that the literature uses.
    """
    wanted = [
        (config.score.inception_score.network, weights.IS_ORDER),
        (config.score.ic_lpips.network, weights.LPIPS_ORDER),
    ]
    networks = [order[0] if network == "auto" else network for network, order in wanted]
    classifier = config.detect.classification
    if classifier and classifier.weights != "none":
        networks.append(classifier.network)
    for entry in (config.detect.comparators or {}).values():
        if hasattr(entry, "backbone") and entry.weights != "none":
            networks.append(entry.backbone)
    return [network for network in networks if network not in ("random", weights.LITE0)]


def check_scoring(config: Config) -> None:
    """UserError unless the weights of both scoring networks are here."""
    weights.choose(config.score.inception_score.network, weights.IS_ORDER)
    weights.choose(config.score.ic_lpips.network, weights.LPIPS_ORDER)


def check_classifier(config: Config) -> None:
    """UserError unless the weights that the classifier starts from are here."""
    section = config.detect.classification
    weights.start(section.network, section.weights)


def check_comparator(config: Config, key: str) -> None:
    """UserError unless the weights that a comparator starts from are here."""
    entry = config.detect.comparators[key]
    if hasattr(entry, "backbone"):
        weights.start(entry.backbone, entry.weights, _fixed(entry))
