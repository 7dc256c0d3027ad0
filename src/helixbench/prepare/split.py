"""Who trains the generator, who is held out, and the proof that nobody is both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from helixbench.datasets.notes import Notes
from helixbench.records import GOOD, LEAKING, RawSample

_NAMES = {2: "half", 3: "a third"}


def _part(rule: str) -> int:
    return 3 if rule.startswith("third") else 2


def borders(n: int, rule: str) -> tuple[int, int]:
    """Of n sorted files of a defect type: how many train the generator, and the first that tests (readings 19 and 20).

    half, third: floor(n/2), floor(n/3), and the rest tests. literal: as half, and all test: the paper's words taken as they
    stand. third_anomalydiffusion: one more trains than is left out of the test, as its training loop counts.
    third_dualanodiff: one more where floor(n/3) is no multiple of 3, as its training script counts.
    """
    first = n // _part(rule)
    more = {"third_anomalydiffusion": 1, "third_dualanodiff": int(first % 3 != 0)}.get(rule, 0)
    return first + more, 0 if rule == "literal" else first


def generator_part(names: Sequence[str], rule: str) -> list[str]:
    """The sorted names that train the generator."""
    return sorted(names)[: borders(len(names), rule)[0]]


def roles(samples: Sequence[RawSample], rule: str, notes: Notes | None = None) -> list[str]:
    """Role of each sample: train/good is `normal`; each defect type is split by `rule` into `generator` and `test`.

    Where the rule leaks, pictures on both sides are `both`. A defect type with too few pictures to give the generator one is a
    problem of `notes`, which raises UserError unless it collects.
    """
    notes = notes or Notes()
    generator: set[Path] = set()
    tested: set[Path] = set()
    for defect in sorted({s.defect for s in samples} - {GOOD}):
        images = [s.image for s in samples if s.defect == defect]
        first = generator_part(list(map(str, images)), rule)
        if not first:
            n = len(images)
            notes.problem(
                f"{images[0].parent}: {n} picture{'s' * (n > 1)} only, and {_NAMES[_part(rule)]} of {n} is 0: none of the defect {defect} "
                "is left to train the generator; add pictures or remove the defect type with its masks"
            )
        generator |= set(map(Path, first))
        tested |= set(map(Path, sorted(map(str, images))[borders(len(images), rule)[1] :]))

    def role(sample: RawSample) -> str:
        if sample.defect == GOOD:
            return "normal" if sample.subset == "train" else "test"
        if sample.image in generator:
            return "both" if sample.image in tested else "generator"
        return "test"

    return [role(sample) for sample in samples]


def check_leaks(samples: Iterable[tuple[str, str, str]], notes: Notes | None = None) -> int:
    """A problem naming both files, thus UserError, for each content that is in training (normal, generator) and in test.

    samples: (file, role, content hash). Hashes of the decoded pixels also find a picture that was saved anew. What is
    `both` leaks by intention, and nothing else does. Returns how many contents were compared.
    """
    notes, samples = notes or Notes(), list(samples)
    trained: dict[str, tuple[str, str]] = {}
    for file, role, content in sorted(samples, key=lambda sample: sample[1] == "both"):
        if role != "test":
            trained.setdefault(content, (file, role))
    for file, role, content in samples:
        other, its_role = trained.get(content, (file, role))
        if role in ("test", "both") and other != file and not (role == its_role == "both"):
            notes.problem(f"{file}: the same picture as {other}, which is in training: a test picture must not be; remove one of the two")
    return len({content for _, _, content in samples})


def split_record(rule: str, k: int, dataset: str, category: str, members: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Content of split.json; `sha256` is that of the canonical JSON of all the rest.

    members: (id, defect, role). Names alone enter the hash: the same split of the same data set has the same hash at any size.
    """
    members = sorted(members)
    pick = lambda defect, role: [i for i, d, r in members if d == defect and r in (role, "both")]  # noqa: E731
    defects = sorted({defect for _, defect, _ in members} - {GOOD})
    record = {
        "rule": rule,
        "k": k,
        "dataset": dataset,
        "category": category,
        "normal": pick(GOOD, "normal"),
        "good": {"test": pick(GOOD, "test")},
        "defects": {defect: {role: pick(defect, role) for role in ("generator", "test")} for defect in defects},
        **({"leaking": True} if rule in LEAKING else {}),
    }
    return {**record, "sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}
