"""Everything in the source that must not be in the output, and whether a text holds any of it.

What is collected: every person name, every instance UID, every date, the text of every attribute that the profile
removes or changes, of private ones too, and the names of folders and files. What is not: words of the safe vocabulary,
words of DICOM's own dictionary and of our reports (for a path, every word that we write ourselves), words that the
profile keeps by rule (a scanner's model), and what is too short to mean anything; these are counted as unsearchable.

How a text is compared: both sides without accents, in one case, cut into words at everything that is no letter or
digit; so ``DOE^JOHN`` is found in ``John Doe``, ``doe_john`` and ``DOE-JOHN.nii``, and ``johndoe`` too.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from medmtl.io.deidentify import private
from medmtl.io.deidentify.dataset import subject_of
from medmtl.io.deidentify.dates import EARLIEST, parse_date, shifted_date
from medmtl.io.deidentify.elements import level, plain, vr_of
from medmtl.io.deidentify.profile import CODE_TEXT, TYPE_UIDS, Action, Options, rule
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.deidentify.search import SHORTEST
from medmtl.io.deidentify.vocabulary import PUBLIC_SCHEMES
from medmtl.io.deidentify.words import WORD, common, folded, own_words

_DATES = re.compile(
    r"(?<!\d)(?<!\d\.)(?:(\d{4})([-/._]?)(\d\d)\2(\d\d)(?:\d{6}|\d{4})?|(\d\d)[-/.](\d\d)[-/.](\d{4}))(?!\d)"
)  # 20210305, 2021-03-05, 20210305123000, 05.03.2021; not inside a longer number or a decimal
_TEXT_VRS = frozenset({"LO", "SH", "LT", "ST", "UC", "UT", "AE", "UR"})
_IDENTIFYING = frozenset(  # attributes whose value counts even where it is a kept word of another attribute
    """
    PatientID OtherPatientIDs AccessionNumber StudyID MedicalRecordLocator AdmissionID RequestedProcedureID
    ScheduledProcedureStepID PerformedProcedureStepID FillerOrderNumberImagingServiceRequest
    PlacerOrderNumberImagingServiceRequest ServiceEpisodeID DeviceSerialNumber StationName
    """.split()  # noqa: SIM905
)
_ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "shift_jis", "iso2022_jp", "euc_kr", "gb18030", "koi8-r")
_LONGEST_PHRASE = 8  # words


@dataclass
class Identifiers:
    """What must not be left. ``kinds`` are names of DICOM attributes, ``path`` or ``private text``."""

    phrases: dict[tuple[str, ...], str] = field(default_factory=dict)  # folded words -> kind
    dates: dict[str, set[str]] = field(default_factory=dict)  # YYYYMMDD -> the pseudonyms of whose date it is
    moved: dict[str, set[str]] = field(default_factory=dict)  # the dates that they became -> the same
    patients: set[str] = field(default_factory=set)  # their pseudonyms
    raw: dict[bytes, str] = field(default_factory=dict)  # byte strings, for the search in binary data
    kept: set[str] = field(default_factory=set)  # folded words that the profile keeps by rule
    unsearchable: Counter[str] = field(default_factory=Counter)

    def add_dataset(self, ds: Dataset, pseudonyms: Pseudonyms, options: Options) -> None:
        """Collect from one data set of the source."""
        owner = pseudonyms.patient(subject_of(ds))
        self.patients.add(owner)
        days = pseudonyms.shift_days(subject_of(ds))
        for element in _walk(ds):
            self._element(element, owner, days, options)

    def add_path(self, relative: Path) -> None:
        """Collect from the folders and the name of one file of the source."""
        for part in (*relative.parts[:-1], relative.name.split(".")[0]):
            self._text("path", part, strict=False)

    def finish(self) -> None:
        """Forget the words that the profile keeps by rule, now that all of them are known."""
        for phrase, kind in list(self.phrases.items()):
            if not _always(kind) and self._known(phrase):
                del self.phrases[phrase]
        for needle, kind in list(self.raw.items()):
            if not _always(kind) and self._known(WORD.findall(folded(needle.decode("utf-8", "ignore")))):
                del self.raw[needle]

    def found_in(self, text: str, *, owners: frozenset[str] = frozenset()) -> set[str]:
        """The kinds of identifier that ``text`` holds. ``owners``: the patients that it is about, where known."""
        kinds = {"date" for match in _DATES.finditer(text) if self._is_date_of(match, owners)}
        plain_text = folded(text)
        matches = list(WORD.finditer(plain_text))
        words = [match[0] for match in matches]
        for length in self._lengths():
            for start in range(len(words) - length + 1):
                kind = self.phrases.get(tuple(words[start : start + length]))
                if kind and (length > 1 or not _mere_number(plain_text, matches[start])):
                    kinds.add(kind)
        return kinds

    def _lengths(self) -> list[int]:
        return sorted({len(phrase) for phrase in self.phrases})

    def _is_date_of(self, match: re.Match[str], owners: frozenset[str]) -> bool:
        """Whether a date is one of the source, of ``owners`` if they are known, and none of their moved dates."""
        year, _, month, day, first, second, last = match.groups()
        for date in [year + month + day] if year else [last + second + first, last + first + second]:
            whose, excused = self.dates.get(date, set()), self.moved.get(date, set())
            if owners:
                whose, excused = whose & owners, excused & owners
            if whose and not excused:
                return True
        return False

    def _known(self, words: Sequence[str]) -> bool:
        return all(word in self.kept or common(word) for word in words) and not _number_in_groups(words)

    def _element(self, element: "_Element", owner: str, days: int, options: Options) -> None:
        kind, vr, text = element.kind, element.vr, element.text
        if vr == "UI":
            for uid in text.split("\\") if element.tag not in TYPE_UIDS else ():
                if uid not in UID_dictionary and not uid.startswith("1.2.840.10008."):
                    self._bytes(kind if "UID" in kind else "private UID", uid)
        elif vr in ("DA", "DT"):
            for value in text.split("\\"):
                self._date(value, owner, days)
        elif vr == "PN":
            for value in text.split("\\"):
                self._name(kind, value)
        elif vr in _TEXT_VRS:
            if not element.private and rule(element.tag, options) is Action.KEEP:
                self.kept.update(WORD.findall(folded(text)))
            else:
                for value in text.split("\\"):
                    self._text(kind, value, strict=kind in _IDENTIFYING)
        elif vr == "CS":
            self.kept.update(WORD.findall(folded(text)))

    def _date(self, value: str, owner: str, days: int) -> None:
        day = parse_date(value[:8]) or parse_date(value)
        if day is None or day <= EARLIEST:
            return
        self.dates.setdefault(f"{day:%Y%m%d}", set()).add(owner)
        if moved := shifted_date(f"{day:%Y%m%d}", days):
            self.moved.setdefault(moved, set()).add(owner)

    def _name(self, kind: str, value: str) -> None:
        for group in value.split("="):
            parts = [" ".join(WORD.findall(folded(part))) for part in group.split("^")]
            parts = [part for part in parts if part]
            for part in parts:
                self._phrase(kind, part.split(), shortest=3)
            for a, b in ((a, b) for i, a in enumerate(parts) for b in parts[i + 1 : i + 3]):
                for pair in ((a, b), (b, a)):
                    self._phrase(kind, " ".join(pair).split(), shortest=3)
                    self._phrase(kind, ["".join(pair).replace(" ", "")], shortest=5)
            originals = [part.strip() for part in group.split("^") if part.strip()]
            for neighbours in pairwise(originals):
                for first, second in (neighbours, neighbours[::-1]):
                    for separator in ("^", " ", "_", ", ", "-", "."):
                        self._bytes(kind, f"{first}{separator}{second}")
            for part in originals:
                if not all(common(word) for word in WORD.findall(folded(part))):
                    self._bytes(kind, part)

    def _text(self, kind: str, value: str, *, strict: bool) -> None:
        """A value as a phrase, and its telling words; ``strict`` values are identifiers as they stand."""
        words = WORD.findall(folded(value))
        if not words:
            return
        known = all(_ordinary(kind, word) for word in words) and not _number_in_groups(words)
        if not known and len(words) <= _LONGEST_PHRASE:
            self._phrase(kind, words, shortest=4)
            if len(words) > 1:
                self._phrase(kind, ["".join(words)], shortest=6)
            self._bytes(kind, value.strip())
        elif known and strict:
            self.unsearchable[kind] += 1
        for word in words:
            if not _ordinary(kind, word) and len(word) >= (4 if not word.isdigit() else 6):
                self._phrase(kind, [word], shortest=4)
                self._bytes(kind, word)

    def _phrase(self, kind: str, words: list[str], *, shortest: int) -> None:
        wide = sum(len(word) if word.isascii() else 2 * len(word) for word in words)
        if wide < shortest or (all(_ordinary(kind, word) for word in words) and not _number_in_groups(words)):
            self.unsearchable[kind] += 1
        elif "Name" in kind:
            self.phrases[tuple(words)] = kind  # a name that a comment repeats is a name
        else:
            self.phrases.setdefault(tuple(words), kind)

    def _bytes(self, kind: str, value: str) -> None:
        if value.isascii():
            variants = {value}
        else:
            variants = {value, value.upper(), value.lower(), unicodedata.normalize("NFD", value), folded(value)}
        for variant in variants:
            for encoding in _ENCODINGS if not variant.isascii() else ("ascii",):
                try:
                    raw = variant.encode(encoding)
                except UnicodeEncodeError:
                    continue
                if len(raw) >= SHORTEST and not raw.isdigit():  # digits alone are looked for in texts, as whole words
                    self.raw.setdefault(raw.lower(), kind)


def _ordinary(kind: str, word: str) -> bool:
    """Whether a word says nothing: of a path, not even a word of our own messages (``truncated``, ``irregular``).

    A report says these of any source; a patient called so is found by the attributes that name the patient.
    """
    return common(word) or (kind == "path" and word in own_words())


def _number_in_groups(words: Sequence[str]) -> bool:
    """Whether the words are one long number written in groups, as of a telephone."""
    return (
        len(words) > 2
        and all(word.isdigit() for word in words)
        and len(set("".join(words))) > 3
        and sum(map(len, words)) > 6
    )


def _always(kind: str) -> bool:
    """Whether values of this attribute count even where a kept attribute has the same words."""
    return kind in _IDENTIFYING or "Name" in kind or "UID" in kind


@dataclass(frozen=True)
class _Element:
    tag: int
    kind: str
    vr: str
    text: str
    private: bool


def _walk(ds: Dataset) -> Iterator[_Element]:
    """Every element with text, sequences included; private ones without those that are safe."""
    creators = {(t.group, t.element): plain(ds, t) for t in level(ds) if t.is_private and 0x10 <= t.element <= 0xFF}
    for tag in level(ds):
        if tag.is_private and ((tag.group, tag.element) in creators or _safe(tag, creators)):
            continue
        if ds.get_item(tag).VR == "UN" and tag.is_private:  # type: ignore[union-attr]
            text = _printable(ds[tag].value)
            if text:
                yield _Element(int(tag), "private text", "LO", text, True)
            continue
        vr = vr_of(ds, tag) if not tag.is_private else str(ds[tag].VR)
        if vr == "SQ":
            for item in ds[tag].value or []:
                yield from _walk(item)
        elif vr in _TEXT_VRS or vr in ("PN", "UI", "DA", "DT", "CS"):
            if int(tag) in CODE_TEXT and plain(ds, "CodingSchemeDesignator").strip().upper() in PUBLIC_SCHEMES:
                vr = "CS"  # kept as it is
            kind = "private text" if tag.is_private else keyword_for_tag(tag) or "unknown attribute"
            yield _Element(int(tag), kind, vr, plain(ds, tag), tag.is_private)


def _safe(tag: "object", creators: dict[tuple[int, int], str]) -> bool:
    group, element = tag.group, tag.element  # type: ignore[attr-defined]
    return (group, creators.get((group, element >> 8), "").strip(" \0"), element & 0xFF) in private.SAFE


def _printable(value: object) -> str:
    """Bytes of unknown meaning as text if they are text throughout."""
    if not isinstance(value, bytes) or len(value) > 4096:
        return ""
    text = value.strip(b" \0").decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else ""


def _mere_number(text: str, match: re.Match[str]) -> bool:
    """Whether a word of digits is a number among others: part of a decimal, or short and nothing marks it as a name."""
    if not match[0].isdigit():
        return False
    before, after = text[max(match.start() - 2, 0) : match.start()], text[match.end() : match.end() + 2]
    decimal = (before[-1:] == "." and before[:1].isdigit()) or (after[:1] == "." and after[1:].isdigit())
    marked = before[-1:] in tuple("\"'_/-#=^\\") or after[:1] in tuple("\"'_/-^\\")
    return decimal or (len(match[0]) < 6 and not marked)
