"""Words for protocols: the one place where facts become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from helixbench.protocol import Protocol
from helixbench.records import leaks
from helixbench.weights import LITE0

Facts = dict[str, Any]
"""What is still to be told; a phrase removes what it tells."""


def words(protocol: Protocol) -> str:
    """A protocol as one line, e.g. `unet(width 64), half split, last checkpoint, 1000 steps x 8`.

    Every fact is in it: first by the phrases below, in their order, the others as `name value`.
    """
    facts: Facts = dict(protocol.facts)
    settings = facts.pop("pairs", None)
    begin = _BEGINNINGS.get(protocol.name, lambda facts: protocol.name)
    parts = [begin(facts)]
    for name, phrase in _PHRASES.items():
        if name in facts:
            parts += _either(facts.pop(name), lambda value, phrase=phrase: phrase(value, facts))
    for name, value in facts.items():
        parts += _either(value, lambda value, name=name: f"{name} {plain(value)}")
    text = ", ".join(parts)
    return text if settings is None else f"{text}; pairs: {plain(settings)}"


def plain(value: Any) -> str:
    """A fact's value as text."""
    if isinstance(value, list | tuple):
        return "-".join(map(plain, value))
    if isinstance(value, Mapping):
        if set(value) == {"either"}:
            return " | ".join(map(plain, value["either"]))
        return "(" + ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def substitute(protocol: Protocol) -> str:
    """What is not the paper's about a network: its name, or that it started untrained; else
    empty.
    """
    network = protocol.get("network")
    if network in ("random", "squeezenet1_1", "squeeze", LITE0):
        return str(network)
    if protocol.get("weights") == "none" or protocol.get("teacher") == "random":
        # The paper's U-Net (`localization`) starts untrained, too.
        return {
            "classification": "untrained",
            "segmentation": "untrained",
            "comparator": "random",
        }.get(protocol.name, "")
    return ""


def _either(value: Any, phrase: Callable[[Any], str]) -> list[str]:
    """The phrase of a value, or of each that defect types differ in."""
    if isinstance(value, Mapping) and set(value) == {"either"}:
        return [" | ".join(phrase(one) for one in value["either"])]
    return [phrase(value)]


# ------------------------------------------------------------------------------------------------
# beginnings, by the protocol's name


def _network(facts: Facts) -> str:
    """Network and weights of a score."""
    network = facts.pop("network", "no network")
    weights, hash_ = facts.pop("weights", None), facts.pop("weights_hash", None)
    seed = facts.pop("weights_seed", None)
    if weights == "none":
        about = "untrained" + ("" if seed is None else f", seed {seed}")
        return f"{'random SqueezeNet' if network == 'random' else plain(network)} ({about})"
    if weights == "imagenet":
        return f"{plain(network)} (ImageNet weights{f' {hash_}' if hash_ else ''})"
    return plain(network) + ("" if weights is None else f" ({plain(weights)} weights)")


def _score(title: str) -> Callable[[Facts], str]:
    def begin(facts: Facts) -> str:
        counted = {"empty": "clusters without an image; ", "single": "clusters of one image; "}
        count = facts.pop("counts", None)
        prefix = "" if count is None else counted.get(count, f"{plain(count)}; ")
        return f"{prefix}{title} {plain(facts.pop('library', ''))}".strip() + f", {_network(facts)}"

    return begin


def _ic_lpips(facts: Facts) -> str:
    like = "distance like IC-LPIPS by" if facts.get("network") == LITE0 else "IC-LPIPS"
    return _score(like)(facts)


def _mask_agreement(facts: Facts) -> str:
    return (
        f"{_which_masks(facts)}AUROC in a picture of the difference to the nearest "
        f"{plain(facts.pop('neighbours', None))} normals against the mask"
    )


def _mask_in_cells(what: str) -> Callable[[Facts], str]:
    def begin(facts: Facts) -> str:
        k = plain(facts.pop("cells", None))
        which = _which_masks(facts)
        return f"{which}{what} the {k} x {k} cells of its raw mask, empty masks left out"

    return begin


def _which_masks(facts: Facts) -> str:
    text = ""
    if facts.get("masks") == "next":
        facts.pop("masks")
        text += "masks of the next pair; "
    if facts.get("of") == "real":
        facts.pop("of")
        text += "real pictures of the generator part; "
    return text


def _localization(facts: Facts) -> str:
    if facts.get("weights") == "none":  # as in the paper, and not worth a word
        facts.pop("weights")
    return f"{plain(facts.pop('network', 'unet'))}(width {plain(facts.pop('width', None))})"


def _start(facts: Facts) -> str:
    weights = facts.pop("weights", None)
    return {"imagenet": "ImageNet start", "none": "untrained start"}.get(weights, plain(weights))


def _classification(facts: Facts) -> str:
    return f"{plain(facts.pop('network', None))} ({_start(facts)})"


def _segmentation(facts: Facts) -> str:
    encoder = plain(facts.pop("encoder", None))
    return f"{plain(facts.pop('network', None))}({encoder}, {_start(facts)})"


def _comparator(facts: Facts) -> str:
    text = f"{plain(facts.pop('method', None))} of anomalib {plain(facts.pop('anomalib', None))}"
    if "network" in facts:
        text += f" on {plain(facts.pop('network'))}"
        weights, hash_ = facts.pop("weights", None), facts.pop("weights_hash", None)
        if weights == "imagenet":
            text += f" (ImageNet weights{f' {hash_}' if hash_ else ''})"
        elif weights is not None:
            text += " (random weights)" if weights == "none" else f" ({plain(weights)} weights)"
    if "teacher" in facts:
        teacher = facts.pop("teacher")
        named = {"published": "its published", "random": "a random"}
        text += f" with {named.get(teacher, plain(teacher))} teacher"
    if facts.get("imagenet_penalty") is not None:
        text += f", {'an' if facts.pop('imagenet_penalty') else 'no'} ImageNet penalty"
    if "textures" in facts:
        textures = facts.pop("textures")
        text += f" with textures of {'other normals' if textures == 'normals' else plain(textures)}"
    return text


_BEGINNINGS: dict[str, Callable[[Facts], str]] = {
    "inception_score": _score("IS"),
    "kid": _score("KID"),
    "ic_lpips": _ic_lpips,
    "mask_agreement": _mask_agreement,
    "mask_in_cells": _mask_in_cells("share of a mask in"),
    "mask_cells_iou": _mask_in_cells("IoU of a mask with"),
    "gate_failed": lambda facts: (
        "pairs still failing the mask gate after the last redraw (scored all the same)"
    ),
    "redraws": lambda facts: "draws repeated by the mask gate",
    "localization": _localization,
    "classification": _classification,
    "segmentation": _segmentation,
    "comparator": _comparator,
}


# ------------------------------------------------------------------------------------------------
# phrases, by the fact


def _split(value: Any, facts: Facts) -> str:
    leaking = " (leaking: its test holds pictures of the generator)" if leaks(plain(value)) else ""
    return f"{plain(value)} split{leaking}"


def _checkpoint(value: Any, facts: Facts) -> str:
    if value != "best_on_test":
        return f"{plain(value)} checkpoint"
    every = facts.pop("validate_every", None)
    return f"best_on_test checkpoint (chosen by the test pictures, every {plain(every)} steps)"


def _length(unit: str, after: str = "") -> Callable[[Any, Facts], str]:
    def phrase(value: Any, facts: Facts) -> str:
        batch = facts.pop("batch", None)
        return f"{plain(value)} {unit}{'' if batch is None else f' x {plain(batch)}'}{after}"

    return phrase


def _anchors(value: Any, facts: Facts) -> str:
    which = {
        "generator": "generator part of the split",
        "all": "all real pictures",
        "third": "first third of the real pictures",
    }
    return f"anchors: {which.get(value, plain(value))}"


def _splits(value: Any, facts: Facts) -> str:
    asked = facts.pop("splits_asked", None)
    short = "" if asked is None else f" ({plain(asked)} asked, too few images)"
    return f"{plain(value)} splits{short}"


def _subsets(value: Any, facts: Facts) -> str:
    return f"{plain(value)} subsets of at most {plain(facts.pop('subset_size', None))}"


def _said(pattern: str) -> Callable[[Any, Facts], str]:
    return lambda value, facts: pattern.format(plain(value))


def _one_of(fact: str, **texts: str) -> Callable[[Any, Facts], str]:
    return lambda value, facts: texts.get(plain(value), f"{fact} {plain(value)}")


_PHRASES: dict[str, Callable[[Any, Facts], str]] = {
    "reference": _one_of("reference", all="to all real pictures of the type"),
    "anchors": _anchors,
    "cap": _said("cap {}"),
    "splits": _splits,
    "subsets": _subsets,
    "shuffles": _said("{} shuffles"),
    "split": _split,
    "gated": _one_of("gated", true="pairs past the gate"),
    "checkpoint": _checkpoint,
    "steps": _length("steps"),
    "steps_per_defect": _length("steps", " per defect type"),
    "epochs": _length("epochs"),
    "ema": _said("EMA {}"),
    "size": _said("{} px"),
    "n": _said("{} images per defect type"),
    "zero": _one_of("zero", true="clusters without a pair count 0"),
    "crop": _one_of("crop", defect="cropped around the masks"),
    "defective_only": _one_of("defective_only", true="defective pictures"),
    "ground_truth": _one_of(
        "ground_truth", full_value="ground truth resized bilinearly, full-value pixels"
    ),
    "pro_limit": _said("PRO to {}"),
    "pro_thresholds": _said("PRO from {} thresholds"),
    "lr": _said("lr {}"),
    "calibration": _said("{} of the normals for calibration"),
    "false_alarms": _said("{} false alarms promised"),
}
