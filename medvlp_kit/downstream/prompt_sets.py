"""Many prompt sets for one question: sampled wordings, and templates by severity and location.

A result of one prompt set says as much about its words as about the model. MI-Zero (Lu et al., CVPR 2023) therefore
samples sets, a name a class and a random subset of templates, and reports the spread; `prompt_spread` does that here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import KitError, unknown
from ..phantoms.scene import FINDINGS, SEVERITIES, SIDED, SIDES, ZONED, ZONES
from .prompts import (
    KINDS,
    NO_FINDING,
    NORMAL,
    PromptSet,
    all_at_once,
    negatives,
    normal_statements,
    phrases,
    plain_name,
    wording,
)

ARTICLE = re.compile("^(an?|una?) ")  # "no an abnormally wide mediastinum" is no English
DENIALS = ("named", "normal", "either")
FEWEST_SETS = 30  # below this the ends of a spread say little
# For labels outside the lexicon; {x} is the name.
AFFIRMING = (
    "There is {x}.", "{x}.", "{x} is seen.", "{x} is present.", "Findings include {x}.", "Evidence of {x}.",
    "An image of {x}.", "The study shows {x}.",
)  # fmt: skip
DENYING = ("No {x}.", "There is no {x}.", "No evidence of {x}.", "No {x} is seen.", "Without {x}.", "Free of {x}.")


@dataclass(frozen=True)
class Wordings:
    """What one finding can be called, and the sentences that affirm or deny it under each name.

    affirmed, denied: (names, frames): `affirmed[n][t]` says it with name n in frame t.
    """

    names: tuple[str, ...]
    affirmed: tuple[tuple[str, ...], ...]
    denied: tuple[tuple[str, ...], ...]


def wordings(finding: str, *, held_out: bool = True, language: str = "en") -> Wordings:
    """All names and frames the kit has for `finding`; `held_out` adds those that no report of the phantoms uses."""
    if finding.casefold() == NO_FINDING.casefold():  # its presence is an absence
        names = [plain_name(other) for other in FINDINGS]
        denied = tuple(all_at_once(_sentence(frame, name) for name in names) for frame in AFFIRMING)
        return Wordings(("no abnormality",), ((*NORMAL, *normal_statements(language=language)),), (denied,))
    if finding not in FINDINGS:
        name = plain_name(finding)
        return Wordings(
            (name,),
            (tuple(_sentence(frame, name) for frame in AFFIRMING),),
            (tuple(_sentence(frame, name) for frame in DENYING),),
        )
    from ..phantoms.lexicon import lexicon

    words = lexicon(language)
    registers = ("full", "held_out") if held_out else ("full",)
    nouns = [noun for kind in registers for noun in words.noun_phrases(finding, None, None, None, 1, kind)]
    nouns = list({noun.bare: noun for noun in nouns}.values())
    frames = [frame for kind in (("seen", "held_out") if held_out else ("seen",)) for frame in words["prompts"][kind]]
    denials = [*words["prompts"]["negative"], *(words["prompts"]["negative_held_out"] if held_out else ())]
    return Wordings(
        tuple(noun.bare for noun in nouns),
        tuple(tuple(words.say(frame, noun) for frame in frames) for noun in nouns),
        tuple(tuple(frame.replace("{x}", ARTICLE.sub("", noun.bare)) for frame in denials) for noun in nouns),
    )


def _sentence(frame: str, name: str) -> str:
    text = frame.replace("{x}", name)
    return text[:1].upper() + text[1:]


def sample_prompt_sets(
    findings: Sequence[str], *, count: int = 50, seed: int = 0, templates: int | None = None, denial: str = "either",
    held_out: bool = True, language: str = "en",
) -> list[PromptSet]:  # fmt: skip
    """`count` prompt sets, each a sensible way to ask. Set i is the same whatever `count`.

    A set draws one name for every finding and a random subset of frames that all findings share.
    templates: how many frames of each half; None draws the number too
    denial:    the other half of a pair: "named" (no pneumothorax), "normal" (the lungs are clear), "either" draws
    """
    if denial not in DENIALS:
        raise unknown("denial", denial, DENIALS)
    if count < 1:
        raise KitError(f"count={count}: sample at least one prompt set")
    known = {finding: wordings(finding, held_out=held_out, language=language) for finding in findings}
    normal = normal_statements(language=language)
    return [
        _sampled(f"sampled {i}", known, normal, np.random.default_rng([seed, i]), templates, denial) for i in range(count)
    ]


def _sampled(name: str, known: dict[str, Wordings], normal: list[str], generator, templates: int | None, denial: str):
    """One draw. Frames are drawn by their place in the list, so that findings with other frames can take part."""

    def some(frames: Sequence[str], order: np.ndarray, many: int) -> tuple[str, ...]:
        places = [place for place in order if place < len(frames)][:many]
        return tuple(dict.fromkeys(frames[place] for place in sorted(places)))

    widest = max(max(len(w.affirmed[0]), len(w.denied[0]), len(normal)) for w in known.values())
    orders = [generator.permutation(widest) for _ in range(2)]
    many = [templates or int(generator.integers(1, widest + 1)) for _ in range(2)]
    by_name = denial == "named" or (denial == "either" and generator.random() < 0.5)
    pairs = {}
    for finding, words in known.items():
        chosen = int(generator.integers(len(words.names)))
        against = words.denied[chosen] if by_name or finding not in FINDINGS else normal  # `normal` speaks of chests
        pairs[finding] = (some(words.affirmed[chosen], orders[0], many[0]), some(against, orders[1], many[1]))
    return PromptSet(name, pairs)


def located_phrases(finding: str, *, per_cell: int = 1, kind: str = "lexicon", language: str = "en") -> dict:
    """(severity, side, zone) -> sentences: templates by severity and location, as GLoRIA (Huang et al. 2021) fills them.

    Only what means something is crossed: a large heart has no side, an effusion no zone, a device no severity. Labels
    outside the lexicon are crossed with all of it. `per_cell` sentences at most, the first in the order of the lexicon.
    """
    if kind not in KINDS:
        raise unknown("kind of prompt", kind, KINDS)
    own = finding in FINDINGS
    severities = SEVERITIES if finding != "Support Devices" else (None,)
    sides = SIDES if not own or finding in SIDED else (None,)
    zones = ZONES if not own or finding in ZONED else (None,)
    cells = itertools.product(severities, sides, zones)
    if kind == "plain" or not own:
        return {cell: phrases(finding, severity=cell[0], side=cell[1], zone=cell[2], kind="plain") for cell in cells}
    from ..phantoms import report

    def every(severity, side, zone) -> list[str]:
        return report.prompts(
            finding, side=side, zone=zone, severity=severity, language=language, held_out=kind == "held out", limit=10**6
        )

    found = {}
    for severity, side, zone in cells:
        silent = set(every(None, side, zone)) if severity else ()  # wordings that leave the severity out
        said = every(severity, side, zone)
        found[severity, side, zone] = ([s for s in said if s not in silent] or said)[:per_cell]
    return found


def located_prompt_set(
    findings: Sequence[str], *, per_cell: int = 1, kind: str = "lexicon", language: str = "en"
) -> PromptSet:
    """A prompt set whose affirming halves name every severity and place in turn; the denying halves are the usual."""
    pairs = {}
    for finding in findings:
        cells = located_phrases(finding, per_cell=per_cell, kind=kind, language=language)
        positive = dict.fromkeys(sentence for cell in cells.values() for sentence in cell)
        pairs[finding] = (tuple(positive), tuple(negatives(finding, language=language, kind=kind)))
    return PromptSet(f"severity x location, {wording(findings, kind)}", pairs)
