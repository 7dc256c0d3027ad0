"""Who trains the generator, who is held out, and the proof that nobody is both."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.records import GOOD, RawSample, leaks

_NAMES = {2: "half", 3: "a third"}


def _part(rule: str) -> int:
    return 3 if rule.startswith("third") else 2


def borders(n: int, rule: str) -> tuple[int, int]:
    """Of n sorted files of a defect type: how many train the generator, and the first that tests
    (readings 19 and 20).

    half, third: floor(n/2), floor(n/3), and the rest tests. literal: as half, and all test: the
    paper's words taken as they stand. third_anomalydiffusion: one more trains than is left out of
    the test, as its training loop counts. third_dualanodiff: one more where floor(n/3) is no
    multiple of 3, as its training script counts.
    """
    first = n // _part(rule)
    more = {"third_anomalydiffusion": 1, "third_dualanodiff": int(first % 3 != 0)}.get(rule, 0)
    return first + more, 0 if rule == "literal" else first


def generator_part(names: Sequence[str], rule: str) -> list[str]:
    """The sorted names that train the generator."""
    return sorted(names)[: borders(len(names), rule)[0]]


Order = Callable[[str], str]
"""What the path of a picture, or the name of a group, is sorted by."""


def _trains(samples: Sequence[RawSample], part: int, order: Order) -> dict[str, bool]:
    """Group -> whether its pictures train, of all groups that hold a defect.

    Whole groups, spread over their order and over each stratum, so that of each defect type about
    one picture in `part` trains. A group of several types counts for the one it has most of.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    strata: dict[str, str] = {}
    for s in samples:
        if s.group and s.defect != GOOD:
            groups[s.group][s.defect] += 1
            strata[s.group] = min(strata.get(s.group, s.stratum), s.stratum)
    in_order = lambda item: (strata[item[0]], order(item[0]))
    seen, given, trains = Counter(), Counter(), {}
    for group, kinds in sorted(groups.items(), key=in_order):
        main = min(kinds, key=lambda defect: (-kinds[defect], defect))
        seen += kinds
        trains[group] = given[main] + kinds[main] / 2 < seen[main] / part
        if trains[group]:
            given += kinds
    return trains


def _spread(samples: Sequence[RawSample], order: Order) -> list[RawSample]:
    """Sorted so that the first of them, however many, are of each stratum in proportion."""
    strata: dict[str, list[RawSample]] = defaultdict(list)
    for s in sorted(samples, key=lambda s: order(str(s.image))):
        strata[s.stratum].append(s)
    placed = [
        ((i + 0.5) / len(own), stratum, s)
        for stratum, own in strata.items()
        for i, s in enumerate(own)
    ]
    return [s for _, _, s in sorted(placed, key=lambda one: one[:2])]


def roles(
    samples: Sequence[RawSample],
    rule: str,
    problems: Problems | None = None,
    *,
    order: Order = str,
    listed: Collection[Path] | None = None,
) -> list[str]:
    """Role of each sample: train/good is `normal`; each defect type is split by `rule` into
    `generator` and `test`.

    Sorted files count. Where pictures come in groups, whole groups do, as near to the rule's share
    as they allow, and a normal picture stays with the defects of its group. Each stratum has its
    share. listed: the pictures that train, whatever the rule's share is. Where the rule leaks,
    pictures on both sides are `both`. A defect type with too few pictures, or groups, to give the
    generator one is a problem of `problems`, which raises UserError unless it collects.
    """
    problems, part = problems or Problems(), _part(rule)
    generator: set[Path] = set()
    tested: set[Path] = set()
    trains = _trains(samples, part, order)
    if listed is not None:
        trains = {s.group: True for s in samples if s.group and s.image in listed}
    for defect in sorted({s.defect for s in samples} - {GOOD}):
        own = _spread([s for s in samples if s.defect == defect], order)
        groups = {s.group for s in own} - {""}
        count, first = borders(len(own), rule)
        if listed is not None:
            own.sort(key=lambda s: s.image not in listed)
            count = first = sum(s.image in listed for s in own)
        elif groups:
            own.sort(key=lambda s: not trains.get(s.group, False))
            whole = sum(trains.get(s.group, False) for s in own)
            count, first = count - len(own) // part + whole, first and whole
        if not count:
            n, many = len(own), len(groups)
            why = f"and {_NAMES[part]} of {n} is 0"
            if listed is not None:
                why = "and none is listed"
            elif groups:
                why = f"of {many} object{'s' * (many > 1)}, which stay together"
            problems.add(
                f"{own[0].image.parent}: {n} picture{'s' * (n > 1)} only, {why}: none of the "
                f"defect {defect} is left to train the generator; add pictures, remove the defect "
                "type with its masks, or leave it out by `without`"
            )
        generator |= {s.image for s in own[:count]}
        tested |= {s.image for s in own[first:]}

    def role(sample: RawSample) -> str:
        if sample.defect == GOOD:
            return "normal" if trains.get(sample.group, sample.subset == "train") else "test"
        if sample.image in generator:
            return "both" if sample.image in tested else "generator"
        return "test"

    found = [role(sample) for sample in samples]
    if not leaks(rule):
        both = list(zip(samples, found, strict=True))
        trained = {s.group for s, side in both if side != "test"} - {""}
        again = {s.group: s.image for s, side in both if side == "test" and s.group in trained}
        for group, image in sorted(again.items()):
            what = f"{image}: its group {group} is in training and in test"
            problems.add(f"{what}; put the pictures of one object on one side")
    return found


def calibrating(
    samples: Sequence[RawSample], ids: Sequence[str], parts: Sequence[str], share: float
) -> list[str]:
    """The roles `parts` with a share, in [0, 1), of the normal ones as `calibration`.

    Drawn by the hashes of the ids, so that they are exchangeable with new pictures; whole groups,
    and none that holds a defect. Raises UserError when none would be left on one of the sides.
    """
    if not share:
        return list(parts)
    shown = {s.group for s in samples if s.defect != GOOD} - {""}
    units: dict[str, list[int]] = defaultdict(list)
    for i, (sample, name, role) in enumerate(zip(samples, ids, parts, strict=True)):
        if role == "normal" and sample.group not in shown:
            units[sample.group or name].append(i)
    normals, found = parts.count("normal"), list(parts)
    wanted = max(1, round(share * normals))
    for unit in sorted(units, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if found.count("calibration") >= wanted:
            break
        for i in units[unit]:
            found[i] = "calibration"
    if not units or found.count("normal") == 0:
        raise UserError(
            f"{samples[0].category}: {normals} normal pictures in training cannot give a share of "
            f"{share:g} for calibration; add pictures or change prepare.calibration"
        )
    return found


_TOKEN = re.compile(r"[^\W\d_]+\d*|\d+")
_STAMP = re.compile(r"([^\W\d_]*(?:19|20)\d{6})\d{4,}")
"""A date that is followed by a time without anything between them."""

FEW = 3
"""Pictures a value of a part of the name has on average, at least: a running number has one."""


def _tokens(sample: RawSample) -> list[str]:
    found = _TOKEN.findall(sample.image.stem)
    return [stamp[1] if (stamp := _STAMP.fullmatch(token)) else token for token in found]


def _listed(values: set[str]) -> str:
    values = sorted(values)
    return ", ".join(values if len(values) < 6 else [*values[:2], "...", values[-1]])


def told_apart(samples: Sequence[RawSample], parts: Sequence[str]) -> list[str]:
    """A line when a part of the file names says which side most test pictures are on, else nothing.

    Such a part, e.g. exp1 of exp1_num_7 or 20240131 of a time stamp, may be the camera, the lot,
    the date or the exposure. More than half of the test pictures then have values that no training
    picture has. parts: roles.
    """
    found: dict[str, tuple[set[str], set[str]]] = {}
    sides = [(s.defect, _tokens(s), role == "test") for s, role in zip(samples, parts, strict=True)]
    for defect in sorted({s.defect for s in samples}, key=lambda name: (name != GOOD, name)):
        own = [(tokens, test) for kind, tokens, test in sides if kind == defect]
        for place in range(min(len(tokens) for tokens, _ in own)):
            train = {tokens[place] for tokens, test in own if not test}
            values = [tokens[place] for tokens, test in own if test]
            every = train | set(values)
            unseen = sum(value not in train for value in values)
            if train and 2 * unseen > len(values) and FEW * len(every) <= len(own):
                found[defect] = (train, set(values))
                break
    if not found:
        return []
    (name, (train, test)), *others = found.items()
    also = f" (also {', '.join(defect for defect, _ in others)})" if others else ""
    return [
        f"{samples[0].category}: names of {name} tell training from test: {_listed(train)} against "
        f"{_listed(test)}{also}; if that is a camera, lot, date or exposure, scores measure it, too"
    ]


def check_leaks(samples: Iterable[tuple[str, str, str]], problems: Problems | None = None) -> int:
    """A problem naming both files, thus UserError, for each content that is in training (normal,
    generator) and in test or calibration, or in these two.

    samples: (file, role, content hash), one per use of a picture: the same file in two roles is
    two. Hashes of the decoded pixels also find a picture that was saved anew. What is `both` leaks
    by intention, and nothing else does. Returns how many contents were compared.
    """
    problems, samples = problems or Problems(), list(samples)
    trained: dict[str, int] = {}
    # What is trained on without leaking by intention comes first: it excuses no other use.
    late = {"both": 1, "calibration": 2}
    for use in sorted(range(len(samples)), key=lambda use: late.get(samples[use][1], 0)):
        _, role, content = samples[use]
        if role != "test":
            trained.setdefault(content, use)
    for use, (file, role, content) in enumerate(samples):
        other = trained.get(content, use)
        its_file, its_role, _ = samples[other]
        intended = {role, its_role} in ({"both"}, {"calibration"})
        if role in ("test", "both", "calibration") and other != use and not intended:
            if its_file == file:
                what, advice = "is given to train on and to test on", "give two sets of pictures"
            else:
                place = "calibration" if its_role == "calibration" else "training"
                what = f"the same picture as {its_file}, which is in {place}"
                advice = "remove one of the two"
            kind = "calibration" if role == "calibration" else "test"
            problems.add(f"{file}: {what}: a {kind} picture must not be; {advice}")
    return len({content for _, _, content in samples})


def split_record(
    rule: str,
    k: int,
    dataset: str,
    category: str,
    members: Iterable[tuple[str, str, str]],
    share: float = 0.0,
) -> dict[str, Any]:
    """Content of split.json; `sha256` is that of the canonical JSON of all the rest.

    members: (id, defect, role); share: of the normals for calibration, 0: none. Names alone enter
    the hash: the same split of the same data set has the same hash at any size.
    """
    members = sorted(members)
    pick = lambda defect, role: [i for i, d, r in members if d == defect and r in (role, "both")]
    defects = sorted({defect for _, defect, _ in members} - {GOOD})
    record = {
        "rule": rule,
        "k": k,
        "dataset": dataset,
        "category": category,
        "normal": pick(GOOD, "normal"),
        "good": {"test": pick(GOOD, "test")},
        "defects": {
            defect: {role: pick(defect, role) for role in ("generator", "test")}
            for defect in defects
        },
        **({"leaking": True} if leaks(rule) else {}),
    }
    if share:
        record["calibration"] = {"share": share, "normal": pick(GOOD, "calibration")}
    return {
        **record,
        "sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest(),
    }
