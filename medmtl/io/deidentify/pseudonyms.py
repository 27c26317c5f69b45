"""Keyed pseudonyms: the same input gives the same output in every file, run and machine with the same key.

Each is an HMAC-SHA256 under the key, so that nobody without it can compute or undo one, not even by trying all
patient ids of a hospital.
"""

import base64
import hashlib
import hmac
import re
import unicodedata
import uuid
from dataclasses import dataclass, field

from medmtl.io.deidentify.dates import shifted_date, shifted_datetime
from medmtl.io.deidentify.key import Key

LONGEST_SHIFT_DAYS = 3650


@dataclass(frozen=True)
class Subject:
    """Who a file is about: PatientID (0010,0020) and IssuerOfPatientID (0010,0021).

    Where there is no patient id, the study stands for the patient: files of one study stay together, two studies of
    one patient do not.
    """

    patient_id: str
    issuer: str = ""
    study_uid: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether there is no patient id."""
        return not normalised(self.patient_id)

    @property
    def canonical(self) -> str:
        """What is hashed. Case, width and spacing do not count; leading zeros and punctuation do."""
        if self.anonymous:
            return "study\0" + (self.study_uid.strip(" \0") or "none")
        return f"patient\0{normalised(self.patient_id)}\0{normalised(self.issuer)}"


def normalised(identifier: str) -> str:
    """Without padding, runs of spaces as one, in compatibility form (NFKC) and upper case."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", identifier.replace("\0", " "))).strip().upper()


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one key. A plain string as a subject is a patient id without an issuer."""

    key: Key
    _uids: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # the frequent ones, per process

    def patient(self, who: str | Subject) -> str:
        """``P`` and 12 base32 characters (60 bits): a million patients collide with probability 4e-7."""
        return "P" + self._letters("patient", _subject(who).canonical)

    def uid(self, uid: str) -> str:
        """``2.25.`` and a version-5 UUID as an integer (PS3.5 B.2), at most 44 characters."""
        plain = uid.strip(" \0")
        if plain not in self._uids:
            if len(self._uids) > 100_000:
                self._uids.clear()
            number = uuid.UUID(bytes=self._digest("uid", plain)[:16], version=5).int
            self._uids[plain] = f"2.25.{number}"
        return self._uids[plain]

    def station(self, name: str) -> str:
        """``S`` and 12 base32 characters for a station's name or a device's serial number: scanners stay distinct."""
        return "S" + self._letters("station", normalised(name))

    def file(self, path: bytes) -> str:
        """``F`` and 12 base32 characters for a path below the source folder."""
        return "F" + self._letters("file", path.hex())

    def shift_days(self, who: str | Subject) -> int:
        """Days, from -3650 to -1, that every date of this patient moves by."""
        number = int.from_bytes(self._digest("shift", _subject(who).canonical)[:8], "big")
        return -1 - number % LONGEST_SHIFT_DAYS

    def date(self, who: str | Subject, value: str) -> str | None:
        """A DA value moved by the patient's shift; None where it is malformed or would fall before 1900."""
        return shifted_date(value, self.shift_days(who))

    def datetime(self, who: str | Subject, value: str) -> str | None:
        """A DT value moved by the patient's shift; None where it is malformed or would fall before 1900."""
        return shifted_datetime(value, self.shift_days(who))

    def fingerprint(self) -> str:
        """Sixteen characters that tell two keys apart and say nothing of either."""
        return self._digest("fingerprint", "").hex()[:16]

    def _letters(self, purpose: str, text: str) -> str:
        return base64.b32encode(self._digest(purpose, text)).decode()[:12]

    def _digest(self, purpose: str, text: str) -> bytes:
        # the purpose keeps a patient id apart from an equal station name; surrogates come from undecodable headers
        message = f"medmtl\0{purpose}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key.secret, message, hashlib.sha256).digest()


def _subject(who: str | Subject) -> Subject:
    return who if isinstance(who, Subject) else Subject(who)
