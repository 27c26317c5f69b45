"""A table of labels joined to the cases of a study, on values that the study itself never shows."""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmtl.data.case import is_formula
from medmtl.errors import SafetyRefusal, UserError
from medmtl.ingest.job import LabelRule
from medmtl.ingest.rules import Rule, Subject, dicom_value
from medmtl.ingest.tables import Row, Table, listed, read_table

_SHORTEST = 4  # characters of a value that is looked for among the labels: "F" or "045" may be a grade
IDENTIFIERS = (  # DICOM keywords of what tells one patient from another
    "PatientID", "PatientName", "OtherPatientIDs", "OtherPatientNames", "IssuerOfPatientID", "PatientBirthDate",
    "AccessionNumber", "StudyID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate",
)  # fmt: skip
_ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")


@dataclass(frozen=True)
class Labels:
    """What a table says of the cases, and what did not fit."""

    targets: Mapping[str, Mapping[str, str]]  # case id -> target -> cell
    columns: tuple[str, ...]
    matched_rows: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LabelTable:
    """A table that was read and checked before any image is."""

    table: Table
    rule: Rule
    key: str
    columns: tuple[str, ...]

    @classmethod
    def read(cls, labels: LabelRule) -> "LabelTable":
        """Raises UserError for a missing file, column or field, with what was probably meant."""
        rule = Rule(labels.match, "--match")
        if rule.is_constant:
            raise UserError(
                "E-ING-RULE", f"{labels.match!r} is the same for every case", "write a field, as {PatientID}",
                where="--match",
            )  # fmt: skip
        table = read_table(Path(labels.table))
        for column in (labels.key, *labels.targets):
            if column not in table.columns:
                lower = {name.casefold(): name for name in table.columns}
                close = [lower[name] for name in difflib.get_close_matches(column.casefold(), lower, n=1)]
                raise UserError(
                    "E-ING-LABEL-COLUMN",
                    f"no column {column!r}",
                    f"did you mean {close[0]!r}?" if close else f"it has {', '.join(table.columns)}",
                    where=table.name,
                )
        columns = labels.targets or tuple(column for column in table.columns if column != labels.key)
        found = cls(table, rule, labels.key, columns)
        found._check_formulas()
        return found

    def _check_formulas(self) -> None:
        for row in self.table.rows:
            for column in self.columns:
                if is_formula(row.cells[column]):
                    raise UserError(
                        "E-ING-LABEL-FORMULA",
                        "the cell would run as a formula in a spreadsheet",
                        "write the value itself, or leave the column out with --targets",
                        where=f"{self.table.name} line {row.line}, column {column!r}",
                    )

    def join(self, cases: Mapping[str, Subject], *, identifying: bool = False) -> Labels:
        """The labels of each case; a case without a row has none, and a key with contradicting rows gives none.

        Unless ``identifying`` values may appear, a column that holds a patient's identifier is refused
        (``E-ING-LABEL-ID``): the study would carry it.
        """
        rows, warnings = self._rows()
        found: dict[str, Mapping[str, str]] = {}
        used: set[str] = set()
        for case_id, subject in cases.items():
            key = normalised(self.rule.value(subject))
            row = rows.get(key) if key else None
            if row is not None:
                if not identifying:
                    self._check_identifiers(row, subject)
                used.add(key)
                found[case_id] = {name: row.cells[name] for name in self.columns if row.cells[name]}
        missing = sorted(set(cases) - set(found))
        unused = sorted(row.line for key, row in rows.items() if key not in used)
        if missing:
            warnings.append(f"W-ING-LABEL-MISSING {len(missing)} of {len(cases)} cases have no row in the table")
        if unused:
            warnings.append(f"W-ING-LABEL-UNUSED {len(unused)} rows match no case: lines {listed(unused)}")
        return Labels(found, self.columns, len(used), (*self.table.warnings, *warnings))

    def _rows(self) -> tuple[dict[str, Row], list[str]]:
        """Rows by key, without those that contradict each other or have no key, and what to say of these."""
        by_key: dict[str, list[Row]] = defaultdict(list)
        for row in self.table.rows:
            by_key[normalised(row.cells[self.key])].append(row)
        without = [row.line for row in by_key.pop("", [])]
        chosen, contradicting, repeated = {}, [], []
        for key, rows in by_key.items():
            same = all(row.cells[name] == rows[0].cells[name] for row in rows for name in self.columns)
            if same:
                chosen[key] = rows[0]
                repeated += [row.line for row in rows[1:]]
            else:
                contradicting += [row.line for row in rows]
        warnings = []
        for code, lines, what in (
            ("W-ING-LABEL-KEY", without, "rows have no key"),
            ("W-ING-LABEL-TWICE", repeated, "rows repeat another one"),
            ("W-ING-LABEL-CONFLICT", contradicting, "rows share a key and contradict each other, none of them is used"),
        ):
            if lines:
                warnings.append(f"{code} {len(lines)} {what}: lines {listed(sorted(lines))}")
        return chosen, warnings

    def _check_identifiers(self, row: Row, subject: Subject) -> None:
        if subject.header is None:
            return
        header = subject.header
        private = {_letters(normalised(dicom_value(header, keyword))) for keyword in IDENTIFIERS}
        for column in self.columns:
            if len(row.cells[column]) >= _SHORTEST and _letters(normalised(row.cells[column])) in private:
                raise SafetyRefusal(
                    "E-ING-LABEL-ID",
                    f"column {column!r} holds an identifier of the patient",
                    "choose the columns that are labels with --targets",
                    where=self.table.name,
                )


def normalised(key: str) -> str:
    """A key for comparison: without outer space, composed; an ISO date as DICOM writes it."""
    text = unicodedata.normalize("NFC", key.replace("\0", "")).strip()
    date = _ISO_DATE.fullmatch(text)
    return "".join(date.groups()) if date else text


def _letters(value: str) -> tuple[str, ...]:
    """The words of a value in a fixed order: ``DOE^JANE`` and ``Jane Doe`` are one name."""
    return tuple(sorted(re.findall(r"\w+", unicodedata.normalize("NFKC", value).casefold())))
