"""Identifiers out of a text: what a library's exception quotes, a log line says, a kept description hides."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from medmtl.io.deidentify.vocabulary import SAFE

REMOVED = "[removed]"
SHORTEST_WORD, SHORTEST_PART = 3, 5  # whole words from 3 characters on, parts of longer words from 5
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){4,}(?![\d.])")
_PARTS = re.compile(r"[\^=\\/\s,;_.\-]+")


@dataclass(frozen=True)
class Scrub:
    """Replaces known identifiers, and whatever looks like an instance UID, whatever their case and order.

    ``names`` are taken apart into words (``DOE^JOHN``), ``identifiers`` and ``paths`` into themselves and their parts.
    Words of the safe vocabulary stay (a patient named Head does not take the head out of every text), and so do words
    of one or two Latin letters: a scrubbed text is safer, not proven safe. :mod:`~medmtl.io.deidentify.verify` proves.
    """

    names: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """Without what it removes."""
        return f"Scrub({len(self.names)} names, {len(self.identifiers)} identifiers, {len(self.paths)} paths)"

    def __post_init__(self) -> None:
        whole = {text.strip() for text in (*self.names, *self.identifiers, *self.paths)}
        words = {word for text in whole for word in _PARTS.split(text)}
        object.__setattr__(self, "_pattern", _alternation(whole | words))

    def __call__(self, text: str) -> str:
        """``text`` with every identifier replaced by ``[removed]``."""
        if self._pattern is not None:
            text = self._pattern.sub(REMOVED, text)
        return _UID.sub(REMOVED, text)

    def finds(self, text: str) -> bool:
        """Whether ``text`` holds one of the identifiers (UIDs by their looks do not count)."""
        return self._pattern is not None and self._pattern.search(text) is not None


def _alternation(found: Iterable[str]) -> re.Pattern[str] | None:
    """One pattern, longest first: long values anywhere, short ones as whole words only (CJK knows no word breaks)."""
    wanted = sorted({text for text in found if _worth(text)}, key=lambda text: (-len(text), text))
    parts = [
        re.escape(text)
        if len(text) >= SHORTEST_PART or not text.isascii()
        else rf"(?<![^\W_]){re.escape(text)}(?![^\W_])"
        for text in wanted
    ]
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None


def _worth(text: str) -> bool:
    return len(text) >= (SHORTEST_WORD if text.isascii() else 2) and text.lower() not in SAFE
