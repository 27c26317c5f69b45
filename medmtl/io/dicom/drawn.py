"""What a segmentation (SEG) or structure set (RTSTRUCT) says it is: which things it draws, on which images."""

from collections.abc import Iterable, Iterator

from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.record import Drawn, Thing

DRAWN_TAGS = frozenset(
    tag_of(keyword)
    for keyword in (
        "ReferencedSeriesSequence", "SegmentSequence", "SegmentationType", "ReferencedFrameOfReferenceSequence",
        "StructureSetROISequence", "RTROIObservationsSequence",
    )
)  # fmt: skip


def drawn_of(elements: Elements, kind: str) -> Drawn | None:
    """What an object of ``kind`` draws; None where it is no drawing."""
    if kind == "SEG":
        things = tuple(_segments(elements))
        return Drawn(things, _unique(_sources(elements)), _unique(_series(elements)), elements.text("SegmentationType"))
    if kind == "RTSTRUCT":
        images, series = _contoured(elements)
        return Drawn(tuple(_regions(elements)), _unique(images), _unique(series))
    return None


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _segments(elements: Elements) -> Iterator[Thing]:
    """PS3.3 C.8.20.4: the category says tissue or organ, the type which one, its modifier which side.

    Number 0 of a label map is its background (PS3.3 C.8.20.2), and nothing that is drawn.
    """
    for item in elements.items("SegmentSequence"):
        if item.integer("SegmentNumber") == 0 and elements.text("SegmentationType") == "LABELMAP":
            continue
        code = item.item("SegmentedPropertyTypeCodeSequence")
        modifiers = [
            *code.items("SegmentedPropertyTypeModifierCodeSequence"),
            *item.items("SegmentedPropertyTypeModifierCodeSequence"),
        ]
        yield Thing(
            item.integer("SegmentNumber") or 0, _code(code), tuple(map(_code, modifiers)), item.text("SegmentLabel")
        )


def _code(item: Elements) -> tuple[str, str]:
    return item.text("CodingSchemeDesignator").upper(), item.text("CodeMeaning")


def _sources(elements: Elements) -> Iterator[str]:
    """The images that it references by series; where it lists none, those that its frames were derived from."""
    listed = [
        item.text("ReferencedSOPInstanceUID")
        for series in elements.items("ReferencedSeriesSequence")
        for item in series.items("ReferencedInstanceSequence")
    ]
    yield from listed
    if listed:
        return
    groups = (
        *elements.items("SharedFunctionalGroupsSequence"),
        *elements.items("PerFrameFunctionalGroupsSequence"),
    )
    for group in groups:
        for derivation in group.items("DerivationImageSequence"):
            for item in derivation.items("SourceImageSequence"):
                yield item.text("ReferencedSOPInstanceUID")


def _series(elements: Elements) -> Iterator[str]:
    for series in elements.items("ReferencedSeriesSequence"):
        yield series.text("SeriesInstanceUID")


def _regions(elements: Elements) -> Iterator[Thing]:
    """PS3.3 C.8.8.5 and C.8.8.8: the code of a region is in its observation."""
    codes = {}
    for seen in elements.items("RTROIObservationsSequence"):
        number = seen.integer("ReferencedROINumber")
        codes[number] = _code(seen.item("RTROIIdentificationCodeSequence"))
    for item in elements.items("StructureSetROISequence"):
        number = item.integer("ROINumber") or 0
        yield Thing(number, codes.get(number, ("", "")), (), item.text("ROIName"))


def _contoured(elements: Elements) -> tuple[list[str], list[str]]:
    """(images, series) of a structure set, PS3.3 C.8.8.5."""
    images, series = [], []
    for reference in elements.items("ReferencedFrameOfReferenceSequence"):
        for study in reference.items("RTReferencedStudySequence"):
            for item in study.items("RTReferencedSeriesSequence"):
                series.append(item.text("SeriesInstanceUID"))
                images += [image.text("ReferencedSOPInstanceUID") for image in item.items("ContourImageSequence")]
    return images, series
