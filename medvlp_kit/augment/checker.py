"""Does a policy keep its word? Proved on phantoms, where the truth is known.

A phantom can be drawn again without one of its findings. Put both pictures through the policy with the same draws of
chance: where the results differ is where the finding is now, whatever the policy says it did. The augmented report is
read with the kit's labeller and held against that, against the regions and against the list of findings:

- *picture*: what is stated to be there is visible, on the named side; what is denied is not visible;
- *regions*: what is stated to be there has a region, on the named side;
- *findings*: what is in the list of findings is stated, with the same polarity and side (for policies that promise it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import KitError
from ..labeller import label_findings
from ..phantoms import chest
from ..phantoms.collection import Phantoms
from ..phantoms.scene import FINDINGS, Scene
from ..study import ABSENT, Finding
from .pairs import WHOLE, Pairs, Policy

SIDES = ("right", "left")  # the patient's right is the left half of the picture
SEEN = 0.02  # grey levels, of 1, by which a pixel must differ for a finding to be seen there
SHARE = 0.1  # of a finding's difference that the named side must hold
ASPECTS = ("picture", "regions", "findings")


@dataclass(frozen=True)
class Case:
    """One statement that does not fit. `study` is its row."""

    study: int
    aspect: str
    finding: str
    problem: str


@dataclass(frozen=True)
class Check:
    """What the checker found of one policy. `passed` when nothing false is stated, and nothing lost where promised.

    statements: how many statements of present, doubtful or absent findings were read in the augmented reports
    left_out:   statements of the untouched reports that the checker itself could not confirm; held against nobody
    moved:      share of the studies of which the policy changed picture or report
    """

    policy: Policy
    statements: int
    cases: tuple[Case, ...]
    left_out: int
    moved: float
    example: str = field(default="", repr=False)

    @property
    def passed(self) -> bool:
        return not self.cases

    @property
    def broken(self) -> dict[str, int]:
        """How many statements are wrong, by aspect."""
        return {aspect: sum(case.aspect == aspect for case in self.cases) for aspect in ASPECTS}

    def __str__(self) -> str:
        if self.passed:
            return f"{self.policy.name} keeps its word: {self.statements} statements, none false"
        broken = ", ".join(f"{count} against the {aspect}" for aspect, count in self.broken.items() if count)
        return f"{self.policy.name} breaks agreement: of {self.statements} statements {broken}; {self.example}"


def check(
    policy: Policy, phantoms: Phantoms | None = None, *, studies: int = 48, size: int = 64, seed: int = 0
) -> Check:
    """Hold a policy against `studies` phantoms; see the top of the file for what is compared."""
    phantoms = Phantoms(studies, seed=seed, split="test") if phantoms is None else phantoms
    if not isinstance(phantoms, Phantoms):
        kind = type(phantoms).__name__
        raise KitError(f"the checker needs phantoms, whose truth is known, not {kind}: give Phantoms(...)")
    rows = range(min(studies, len(phantoms)))
    pairs = Pairs.of(phantoms, rows, size=size)
    bare = without(tuple(phantoms.scene(i) for i in rows), size=size)
    # what the checker itself cannot confirm of pairs that nobody touched is no fault of a policy
    known = {(case.study, case.aspect, case.finding) for case in _cases(pairs, _visible(pairs, bare, None, seed), True)}
    after = policy(pairs, generator=torch.Generator().manual_seed(seed))
    found = _cases(after, _visible(pairs, bare, policy, seed), WHOLE in policy.promises)
    cases = tuple(case for case in found if (case.study, case.aspect, case.finding) not in known)
    changed = (after.images != pairs.images).flatten(1).any(1)  # (B,)
    moved = [bool(changed[row]) or after.reports[row] != pairs.reports[row] for row in range(len(pairs))]
    example = ""
    if cases:
        first = cases[0]
        example = f"study {first.study}: {first.problem}"
    statements = sum(len(label_findings(report.text, language=report.language)) for report in after.reports)
    return Check(policy, statements, cases, len(known), sum(moved) / len(moved), example)


def prove(policy: Policy, phantoms: Phantoms | None = None, **options) -> Check:
    """The check of a policy; `KitError` that names the step which breaks agreement, if one does."""
    whole = check(policy, phantoms, **options)
    if whole.passed:
        return whole
    for step in policy.steps:
        alone = check(step, phantoms, **options)
        if not alone.passed:
            raise KitError(f"{alone}; take it out, or use a policy that changes the words with the picture")
    raise KitError(f"{whole}; each step alone keeps its word: try another order")


# ---- what is visible --------------------------------------------------------------------------------------------


def without(scenes: Sequence[Scene], *, size: int) -> dict[str, Tensor]:
    """For each finding the pictures (B, 1, size, size) of the same scenes without it, all else the same."""
    bare = {}
    for name in FINDINGS:
        if any(scene.sign(name) for scene in scenes):
            fewer = [replace(scene, signs=tuple(s for s in scene.signs if s.finding != name)) for scene in scenes]
            bare[name] = chest.render(fewer, size=size)
    return bare


def _visible(pairs: Pairs, bare: dict[str, Tensor], policy: Policy | None, seed: int) -> dict[str, Tensor]:
    """finding -> (B, 2): how much of the picture's right and left half (the patient's) differs by the finding."""

    def augmented(images: Tensor) -> Tensor:
        if policy is None:
            return images
        return policy(pairs.but(images=images), generator=torch.Generator().manual_seed(seed)).images

    own, halves = augmented(pairs.images), {}
    for name, images in bare.items():
        difference = (own - augmented(images)).abs().amax(dim=1)  # (B, H, W)
        difference = torch.where(difference > SEEN, difference, 0)
        middle = difference.shape[-1] // 2
        halves[name] = torch.stack([difference[..., :middle].sum((1, 2)), difference[..., middle:].sum((1, 2))], dim=1)
    return halves


# ---- what is wrong ----------------------------------------------------------------------------------------------


def _cases(pairs: Pairs, visible: dict[str, Tensor], whole: bool) -> list[Case]:
    cases = []
    for row, report in enumerate(pairs.reports):
        said = label_findings(report.text, language=report.language)
        for name, finding in said.items():
            seen = visible[name][row].tolist() if name in visible else [0.0, 0.0]
            for aspect, problem in (
                ("picture", _against_picture(finding, dict(zip(SIDES, seen, strict=True)))),
                ("regions", _against_regions(finding, [r for r in pairs.regions[row] if r.label == name])),
            ):
                if problem:
                    cases.append(Case(row, aspect, name, problem))
        for finding in pairs.findings[row] if whole else ():
            stated = said.get(finding.name)
            if stated is None or (stated.status, stated.side) != (finding.status, finding.side):
                problem = f"{_words(finding)} is in the list of findings, the report says {_words(stated)}"
                cases.append(Case(row, "findings", finding.name, problem))
    return cases


def _against_picture(finding: Finding, seen: dict[str, float]) -> str:
    total = sum(seen.values())
    if finding.status == ABSENT:
        return f"the report denies {finding.name}, the picture shows it" if total > 0 else ""
    if total == 0:
        return f"the report says {_words(finding)}, the picture shows none"
    if finding.side in seen and seen[finding.side] < SHARE * total:
        return f"the report says {_words(finding)}, the picture shows it on the other side"
    return ""


def _against_regions(finding: Finding, regions: list) -> str:
    if finding.status == ABSENT:
        return f"the report denies {finding.name}, a region marks it" if regions else ""
    if not regions:
        return f"the report says {_words(finding)}, no region marks it"
    sides = {region.side for region in regions} - {None}
    if finding.side in SIDES and sides and finding.side not in sides:
        return f"the report says {_words(finding)}, its region is on the other side"
    return ""


def _words(finding: Finding | None) -> str:
    if finding is None:
        return "nothing of it"
    return " ".join(filter(None, (finding.status, finding.side, finding.name)))
