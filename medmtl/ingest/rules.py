"""Rules that name things: templates over DICOM keywords and folders, regular expressions on the path, constants."""

import re
import string
from dataclasses import dataclass
from pathlib import PurePosixPath

from medmtl.errors import UserError
from medmtl.io.dicom.keywords import closest_keyword, known_keyword
from medmtl.io.dicom.record import Header

PATH_FIELDS = ("path", "name", "stem", "suffix", "folder")
_SUFFIXES = (".nii.gz",)
_EXAMPLES = (
    'write a template such as "{Manufacturer} {ManufacturerModelName}" or "{folder:1}", a regular expression with one '
    "named group such as (?P<group>sub-[0-9]+), or a word"
)


@dataclass(frozen=True)
class Subject:
    """What a rule is applied to: the path of a case's first file, and its DICOM header if it has one."""

    path: str
    header: Header | None = None

    def field(self, name: str, argument: str) -> str:
        """A field of a template; empty where the subject has none."""
        path = PurePosixPath(self.path)
        match name:
            case "path":
                return self.path
            case "name":
                return path.name
            case "stem":
                return stem(self.path)
            case "suffix":
                return path.name.removeprefix(stem(self.path))
            case "folder":
                folders = path.parent.parts
                return folders[int(argument) - 1] if 0 < int(argument) <= len(folders) else ""
        return dicom_value(self.header, name) if self.header else ""


@dataclass(frozen=True)
class Rule:
    """A rule, checked when it is made. ``keywords`` are the DICOM keywords that it needs."""

    text: str
    option: str  # where the user wrote it, for messages

    def __post_init__(self) -> None:
        if self.is_pattern:
            try:
                groups = len(re.compile(self.text).groupindex)
            except re.error as error:
                raise self._wrong(f"no regular expression ({error})") from error
            if groups != 1:
                raise self._wrong(f"{groups} named groups")
            return
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise self._wrong(f"no template ({error})") from error
        for _, name, argument, conversion in parts:
            if name is None:
                continue
            if conversion or not re.fullmatch("[A-Za-z][A-Za-z0-9]*", name):
                raise self._wrong(f"{{{name}}} is no field")
            if name == "folder" and not re.fullmatch("[1-9][0-9]?", argument or ""):
                raise self._wrong("folder without its number")
            if name not in PATH_FIELDS and (argument or not known_keyword(name)):
                meant = f", did you mean {{{close}}}?" if (close := closest_keyword(name)) else ""
                fields = ", ".join(PATH_FIELDS)
                raise self._wrong(f"{{{name}}} is neither a DICOM keyword nor one of {fields}{meant}")

    @property
    def is_pattern(self) -> bool:
        return "(?P<" in self.text

    @property
    def keywords(self) -> tuple[str, ...]:
        if self.is_pattern:
            return ()
        names = {name for _, name, _, _ in string.Formatter().parse(self.text) if name}
        return tuple(sorted(names - set(PATH_FIELDS)))

    @property
    def is_constant(self) -> bool:
        return not self.is_pattern and not any(name for _, name, _, _ in string.Formatter().parse(self.text))

    def value(self, subject: Subject) -> str:
        """What the rule says of a subject; empty where the expression does not match or every field is empty."""
        if self.is_pattern:
            found = re.search(self.text, subject.path)
            return (next(iter(found.groupdict().values())) or "") if found else ""
        if self.is_constant:
            return self.text.format().strip()
        parts = [
            (text, None if name is None else subject.field(name, argument or ""))
            for text, name, argument, _ in string.Formatter().parse(self.text)
        ]
        if not any(value for _, value in parts):
            return ""
        return " ".join("".join(text + (value or "") for text, value in parts).split())

    def _wrong(self, what: str) -> UserError:
        return UserError("E-ING-RULE", f"{self.text!r}: {what}", _EXAMPLES, where=self.option)


def dicom_value(header: Header, keyword: str) -> str:
    """A value of a header as text, whether it may be written or not."""
    if keyword in header.private:
        return header.private[keyword]
    own = {
        "PatientID": header.patient_id,
        "StudyInstanceUID": header.study_uid,
        "SeriesInstanceUID": header.series_uid,
        "SOPInstanceUID": header.sop_instance_uid,
        "FrameOfReferenceUID": header.frame_of_reference_uid,
        "Modality": header.modality,
        "Manufacturer": header.manufacturer,
    }
    if own.get(keyword):
        return own[keyword]
    value = header.facts.get(keyword, "")
    if isinstance(value, tuple):
        return "\\".join(as_text(part) for part in value)
    return as_text(value)


def as_text(value: str | float) -> str:
    """A number as short as it can be, without a fraction where it has none."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def stem(path: str) -> str:
    """The name of a file without its suffix; ``.nii.gz`` is one suffix."""
    name = PurePosixPath(path).name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return PurePosixPath(name).stem
