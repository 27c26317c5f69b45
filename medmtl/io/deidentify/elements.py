"""Elements of a pydicom data set as plain values, undecoded where that is possible: fast, and without its warnings."""

from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, UID_dictionary

from medmtl.io.reasons import refusal


def level(ds: Dataset) -> list[BaseTag]:
    """The tags of one level; iterating a Dataset itself would decode every element."""
    return list(ds.keys())


def vr_of(ds: Dataset, tag: BaseTag) -> str:
    """The VR in the file, or the dictionary's where the file states none or UN; "UN" where nobody knows."""
    item = ds.get_item(tag)
    vr = item.VR if item is not None else None
    if vr in (None, "UN"):
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            vr = "UN"
    return str(vr).split(" or ")[0]  # "US or SS", "OB or OW": the same rules hold for both


def fits(ds: Dataset, tag: BaseTag) -> bool:
    """Whether the VR in the file is of the class that the dictionary gives the attribute, and numbers are as many.

    A name in an attribute of numbers, or in numbers where a text belongs, would slip through every rule of its VR.
    """
    vr = vr_of(ds, tag)
    expected = dictionary_VR(tag).split(" or ")
    if vr in _NUMBERS:
        return not _NUMBERS.keys().isdisjoint(expected) and _as_many(ds, tag, _NUMBERS[vr])
    known = vr in _STRINGS or vr in _BINARY or vr == "SQ"
    return known and any(vr in group and other in group for group in (_STRINGS, _BINARY, {"SQ"}) for other in expected)


def _as_many(ds: Dataset, tag: BaseTag, size: int) -> bool:
    """Whether the bytes of an undecoded element are as many as its multiplicity in the dictionary says, if it does."""
    item, multiplicity = ds.get_item(tag), dictionary_VM(tag)
    if not isinstance(item, RawDataElement) or not multiplicity.isdigit():
        return True
    return len(item.value or b"") in (0, size * int(multiplicity))


_NUMBERS = {"US": 2, "SS": 2, "AT": 4, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "UV": 8, "SV": 8}  # bytes of one
_STRINGS = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())  # noqa: SIM905
_BINARY = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})


def plain(ds: Dataset, key: Any) -> str:
    """A value as text, several joined by backslashes; "" where it is absent."""
    tag = Tag(key)
    if tag not in ds:
        return ""
    item = ds.get_item(tag)
    if isinstance(item, RawDataElement) and vr_of(ds, tag) in ("DA", "DT", "TM", "UI", "DS", "IS", "CS", "AS"):
        return (item.value or b"").decode("latin-1").strip(" \0")
    value = ds[tag].value
    if value is None:
        return ""
    return "\\".join(str(part) for part in value) if isinstance(value, MultiValue | list) else str(value).strip(" \0")


def charset_of(ds: Dataset) -> Any:
    return getattr(ds, "original_character_set", None) or "iso8859"


def syntax_of(ds: Dataset) -> UID:
    """The transfer syntax that the data set is really encoded in: files exist whose header says another one.

    Raises UserError (``E-DEID-READ``) for one that is private or unknown: nobody could say what its bytes mean.
    """
    meta = getattr(ds, "file_meta", None)
    stated = UID(str(meta.get("TransferSyntaxUID", "") or "")) if meta is not None else UID("")
    implicit, little = ds.original_encoding
    if stated:
        if stated.is_private or stated not in UID_dictionary or not stated.is_transfer_syntax:
            raise refusal("E-DEID-READ", f"the transfer syntax {stated[:64]} is private or unknown")
        agrees = implicit is None or (stated.is_implicit_VR, stated.is_little_endian) == (implicit, little)
        if agrees or stated.is_compressed:
            return stated
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
