"""Who trains the generator, who is held out, and the proof that nobody is both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample


def half_split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """First floor(n/2) of the sorted names for the generator, the rest for the test (reading 19)."""
    ordered = sorted(names)
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


RULES = {"half": half_split}


def roles(samples: Sequence[RawSample], rule: str) -> list[str]:
    """Role of each sample: train/good is `normal`; each defect type is split by `rule` into `generator` and `test`.

    Raises UserError when a defect type has too few pictures to give the generator one.
    """
    generator: dict[str, set[str]] = {}
    for defect in sorted({s.defect for s in samples} - {GOOD}):
        images = [s.image for s in samples if s.defect == defect]
        first, _ = RULES[rule]([image.name for image in images])
        if not first:
            raise UserError(
                f"{images[0].parent}: {len(images)} picture only, and half of 1 is 0: none is left to train the generator; "
                "add pictures or remove the defect type with its masks"
            )
        generator[defect] = set(first)

    def role(sample: RawSample) -> str:
        if sample.defect == GOOD:
            return "normal" if sample.subset == "train" else "test"
        return "generator" if sample.image.name in generator[sample.defect] else "test"

    return [role(sample) for sample in samples]


def check_leaks(samples: Iterable[tuple[str, str, str]]) -> int:
    """UserError naming both files when one content is in training (normal, generator) and in test.

    samples: (file, role, content hash). Hashes of the decoded pixels also find a picture that was saved anew.
    Returns how many contents were compared.
    """
    samples = list(samples)
    trained = {content: file for file, role, content in samples if role != "test"}
    for file, role, content in samples:
        if role == "test" and content in trained:
            raise UserError(
                f"{file}: the same picture as {trained[content]}, which is in training: a test picture must not be; remove one of the two"
            )
    return len({content for _, _, content in samples})


def split_record(rule: str, k: int, dataset: str, category: str, members: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Content of split.json; `sha256` is that of the canonical JSON of all the rest.

    members: (id, defect, role). Names alone enter the hash: the same split of the same data set has the same hash at any size.
    """
    members = sorted(members)
    pick = lambda defect, role: [i for i, d, r in members if (d, r) == (defect, role)]  # noqa: E731
    defects = sorted({defect for _, defect, _ in members} - {GOOD})
    record = {
        "rule": rule,
        "k": k,
        "dataset": dataset,
        "category": category,
        "normal": pick(GOOD, "normal"),
        "good": {"test": pick(GOOD, "test")},
        "defects": {defect: {role: pick(defect, role) for role in ("generator", "test")} for defect in defects},
    }
    return {**record, "sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}
