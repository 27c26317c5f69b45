"""What cases, groups and domains are called: pseudonyms by default, real names only where the user keeps them."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medmtl.errors import SafetyRefusal
from medmtl.ingest.rules import Rule, Subject, dicom_value, stem
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.deidentify.pseudonyms import Subject as Patient
from medmtl.io.dicom.record import Header

_BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[_/])")
_LONGEST = 96
_SHORTEST_NAME = 3


@dataclass(frozen=True)
class Namer:
    """Names under one key; with ``keep``, real ones."""

    pseudonyms: Pseudonyms
    keep: bool
    group_rule: Rule | None
    domain_rule: Rule | None

    def file_id(self, path: str) -> str:
        """The name of a file in everything that may be shared."""
        return path if self.keep else self.pseudonyms.file(_encoded(path))

    def patient(self, header: Header) -> str:
        """The group of a DICOM file: its patient, or its study if it has no patient id."""
        who = Patient(header.patient_id, header.private.get("IssuerOfPatientID", ""), header.study_uid)
        if self.keep and not who.anonymous:
            return plain(header.patient_id)
        return self.pseudonyms.patient(who)

    def group(self, path: str) -> tuple[str, bool]:
        """The group of any other image, and whether anything but the file itself says so."""
        subject = Subject(path)
        if self.group_rule is not None:
            name = self.group_rule.value(subject)
        else:
            bids = _BIDS.search(path)
            name = bids[1] if bids else path.partition("/")[0] if "/" in path else ""
        found = bool(name)
        name = name or f"file {path}"
        if self.keep:
            return plain(name if found else stem(path)), found
        return self.pseudonyms.patient(name), found

    def guessed(self, path: str) -> bool:
        """Whether a group is only what the first folder is called, which may be a class or a site."""
        return self.group_rule is None and "/" in path and _BIDS.search(path) is None

    def domain(self, subject: Subject) -> str:
        """The domain of a case: by the rule, or the make and model of its scanner; empty where unknown."""
        if self.domain_rule is not None:
            return cell(self.domain_rule.value(subject))
        if subject.header is None:
            return ""
        parts = [dicom_value(subject.header, name) for name in ("Manufacturer", "ManufacturerModelName")]
        return cell(" ".join(" ".join(parts).split()))

    def volume_id(self, header: Header, key: str, group: str) -> str:
        """The id of a DICOM volume: who, what, and a hash of its series and its place in it."""
        identity = f"series\0{header.series_uid}\0{key}".encode("utf-8", "surrogateescape")
        return f"{group[:_LONGEST]}_{plain(header.modality) or 'OT'}_{self._letters(identity)}"

    def image_id(self, path: str, group: str, page: int | None) -> str:
        """The id of any other image."""
        end = "" if page is None else f"_p{page + 1:03d}"
        if not self.keep:
            return f"{group}_IMG_{self._letters(_encoded(path))}{end}"
        name = stem(path) if stem(path).startswith("sub-") else f"{path.rpartition('/')[0]}/{stem(path)}".strip("/")
        tidy = plain(name.replace("/", "_"))
        same = tidy == name.replace("/", "_") and len(tidy) <= _LONGEST
        return (tidy if same else f"{tidy[:_LONGEST]}-{self._letters(_encoded(path))}") + end

    def _letters(self, identity: bytes) -> str:
        if self.keep:
            return hashlib.sha256(identity).hexdigest()[:10]
        return self.pseudonyms.file(identity)[1:11]


def unique(names: Mapping[str, str], namer: Namer) -> dict[str, str]:
    """Ids by what they stand for, told apart where a file system that ignores case or composition would not.

    Every one of them gets a suffix made of its identity, so none depends on the order of the others.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for identity, name in names.items():
        alike[unicodedata.normalize("NFC", name).casefold()].append(identity)
    result = {}
    for identities in alike.values():
        for identity in identities:
            end = f"-{namer._letters(_encoded(identity))}" if len(identities) > 1 else ""
            result[identity] = names[identity] + end
    return result


def check_domains(domains: Sequence[tuple[str, Header | None]], option: str) -> None:
    """Refuse a rule that makes a patient's name or number a domain (``E-ING-DOMAIN-ID``)."""
    for domain, header in domains:
        if header is None or not domain:
            continue
        words = set(re.findall(r"\w+", domain.casefold()))
        for keyword in ("PatientID", "PatientName", "OtherPatientIDs", "AccessionNumber", "PatientBirthDate"):
            words_of = re.findall(r"\w+", dicom_value(header, keyword).casefold())
            parts = {part for part in words_of if len(part) >= _SHORTEST_NAME}
            if parts & words:
                raise SafetyRefusal(
                    "E-ING-DOMAIN-ID",
                    f"the rule makes a part of {keyword} a domain",
                    "choose a rule that names scanners or sites, or run with --keep-names",
                    where=option,
                )


def plain(text: str) -> str:
    """Letters, digits, ``-``, ``_`` and ``.`` only, never hidden, of limited length."""
    composed = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", composed).strip("-.")[:_LONGEST]


def cell(text: str) -> str:
    """A value for a table: without control characters, and with an apostrophe where a spreadsheet would compute it."""
    clean = "".join(c if c.isprintable() else " " for c in text).strip()
    if clean[:1] in ("=", "@") or (clean[:1] in ("+", "-") and not _is_number(clean)):
        return f"'{clean}"
    return clean


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
