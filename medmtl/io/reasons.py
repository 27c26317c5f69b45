"""Every code that reading and ingesting scans can end with: what it means and what to do about it.

``E-`` refused, ``R-`` repaired, ``W-`` accepted with a warning, ``I-`` ignored. Codes are stable and can be searched
for; ``docs/ingestion.md`` is written from this table.
"""

from medmtl.errors import SafetyRefusal, UserError

REMEDY: dict[str, str] = {
    # files
    "E-FILE-EMPTY": "export it again from the PACS",
    "E-FILE-OPEN": "give yourself permission to read it, or copy it again",
    "E-FILE-CHANGED": "wait until it is copied, then run again",
    "E-SEC-PATH": "copy the file below the source folder",
}


def refusal(code: str, what: str, *, where: str = "") -> UserError:
    """The error of a known code; a code that the table does not hold is a defect."""
    kind = SafetyRefusal if code.startswith("E-SEC-") else UserError
    return kind(code, what, REMEDY[code], where=where)
