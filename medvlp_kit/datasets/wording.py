"""Words: counts for messages, and report texts with their encoding mended."""

from __future__ import annotations

import re
from collections import Counter


def counted(count: int, noun: str) -> str:
    """'1 study', '3 studies'."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith(("x", "ch")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def tally(reasons: Counter) -> str:
    """'3 rows without notes, 2 of modality CT' from counted reasons; "" when there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def mend_text(text: object) -> str:
    """The text with its encoding repaired (ftfy), lost apostrophes put back, blanks and empty lines tidied.

    U+FFFD stands for a character that was lost; between two letters it was nearly always an apostrophe.
    """
    import ftfy

    mended = ftfy.fix_text("" if text is None else str(text))
    mended = re.sub(r"(?<=[^\W\d_])\ufffd+(?=[^\W\d_])", "'", mended).replace("\ufffd", " ")
    lines = (" ".join(line.split()) for line in mended.splitlines())
    return "\n".join(line for line in lines if line)


def is_damaged(text: str) -> bool:
    """Whether a text has lost characters, or characters that were read in the wrong encoding (ftfy's measure)."""
    import ftfy
    from ftfy.badness import is_bad

    return "\ufffd" in text or is_bad(text) or ftfy.fix_encoding(text) != text
