"""The items of the ADAS-Cog-13 and how far each counts: one place, read by the drawn study and by the workflow.

Maxima and numbering are the usual ones (Mohs et al. 1997; 85 points in all, more is worse). They are general knowledge
and were **not** looked up in a study's documents: check them against the data dictionary of your study before use.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Item(NamedTuple):
    """A part of the test: what is asked, and its highest (worst) score."""

    what: str
    high: int


ITEMS: Mapping[str, Item] = MappingProxyType(
    {
        "q1": Item("word recall", 10),
        "q2": Item("commands", 5),
        "q3": Item("constructional praxis", 5),
        "q4": Item("delayed word recall", 10),
        "q5": Item("naming", 5),
        "q6": Item("ideational praxis", 5),
        "q7": Item("orientation", 8),
        "q8": Item("word recognition", 12),
        "q9": Item("remembering instructions", 5),
        "q10": Item("comprehension of spoken language", 5),
        "q11": Item("word finding", 5),
        "q12": Item("spoken language ability", 5),
        "q13": Item("number cancellation", 5),
    }
)
HIGH_13 = sum(item.high for item in ITEMS.values())
NOT_IN_11 = ("q4", "q13")  # the ADAS-Cog-11 is without them
HIGH_11 = HIGH_13 - sum(ITEMS[name].high for name in NOT_IN_11)
MONTHS = (0, 6, 12, 24)  # visits whose total is a target of the baseline image, ``adas13_m<months>``
