"""What happens to each attribute: the Basic Application Level Confidentiality Profile of DICOM PS3.15 annex E.

Which attributes carry risk is table E.1-1 (edition 2026c), taken as data from the package dicom-anonymizer; what is
done to them is decided here. Where the table leaves a choice between actions, because it depends on the type of the
attribute in each kind of object, the strictest one is taken that keeps every kind of object valid:

=========  =====================================================================================================
Z, X/Z     emptied: valid for type 2 and for type 3
Z/D        a dummy value: valid for every type
X/D, D     a dummy value
X/Z/D      removed; but station and serial number, of type 1 in enhanced images, become keyed pseudonyms, and dates
           are moved
X/Z/U*     kept as references, every UID in them replaced
X, U       removed; replaced by a keyed UID
=========  =====================================================================================================

Beyond the table (it keeps what it does not name, we do not): private attributes outside a short list, attributes that
are not in the dictionary, retired repeating groups, person names, addresses and free text anywhere, and binary data
that is neither pixels nor a look-up table are removed; unknown UIDs are replaced; all dates are moved.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache
from typing import Literal

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import dictionary_has_tag, tag_for_keyword

EDITION = "2026c"


@dataclass(frozen=True)
class Options:
    """Options of PS3.15 table E.1-1 that are applied, each of which is recorded in (0012,0064)."""

    dates: Literal["shift", "remove"] = "shift"  # 113107: dates of acquisition moved per patient, clock times kept
    patient_characteristics: bool = True  # 113108: sex, age (capped at 90), height, weight
    descriptors: bool = True  # 113105: safe words of descriptions stay
    safe_private: bool = True  # 113111: private numbers that are needed to read pixels
    allow_burned_in: bool = False  # images that may have text in their pixels pass; pixels are never changed

    def codes(self) -> list[tuple[str, str]]:
        """Code value and meaning (DCM, context group 7050) of the profile and of each option applied."""
        chosen = [("113100", "Basic Application Confidentiality Profile")]
        if self.descriptors:
            chosen.append(("113105", "Clean Descriptors Option"))
        if self.dates == "shift":
            chosen.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
        if self.patient_characteristics:
            chosen.append(("113108", "Retain Patient Characteristics Option"))
        if self.safe_private:
            chosen.append(("113111", "Retain Safe Private Option"))
        return chosen

    def name(self) -> str:
        """All options and the edition of the table, for a ledger."""
        return f"{EDITION} " + " ".join(f"{key}={value}" for key, value in asdict(self).items())


class Action(Enum):
    """What is done to one attribute; its value representation (VR) decides the form of a dummy."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    REFERENCE = "U*"  # a sequence whose items are de-identified
    KEEP = "K"  # as it is, if its VR allows no text; text must not hold an identifier of this header
    CATCH_ALL = ""  # no rule names it: by VR
    MOVE = "C date"  # a date or time of the acquisition
    CLEAN = "C text"  # safe words
    AGE = "C age"
    PATIENT = "D patient"  # the patient's pseudonym
    STATION = "D station"  # a keyed pseudonym


def _tags(keywords: str) -> frozenset[int]:
    """Tags of DICOM keywords; a keyword that the dictionary does not know is a defect."""
    found = [tag_for_keyword(word) for word in keywords.split()]
    assert None not in found, [word for word in keywords.split() if tag_for_keyword(word) is None]
    return frozenset(tag for tag in found if tag is not None)


TEMPORAL = _tags(  # 113107 moves these; other dates follow the table, dates that it does not name are moved too
    """StudyDate StudyTime SeriesDate SeriesTime AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate
    ContentTime InstanceCreationDate InstanceCreationTime FrameAcquisitionDateTime FrameReferenceDateTime
    StartAcquisitionDateTime EndAcquisitionDateTime RadiopharmaceuticalStartTime RadiopharmaceuticalStopTime
    RadiopharmaceuticalStartDateTime RadiopharmaceuticalStopDateTime DecayCorrectionDateTime
    ContrastBolusStartTime ContrastBolusStopTime StructureSetDate StructureSetTime RTPlanDate RTPlanTime TreatmentDate
    TreatmentTime DateOfSecondaryCapture TimeOfSecondaryCapture"""
)
CHARACTERISTICS = _tags("PatientSex PatientSize PatientWeight")
DESCRIPTORS = _tags(
    """StudyDescription SeriesDescription ProtocolName AcquisitionProtocolDescription RequestedProcedureDescription
    PerformedProcedureStepDescription ContrastBolusAgent AcquisitionDeviceProcessingDescription DerivationDescription
    AcquisitionContextDescription Radiopharmaceutical StructureSetLabel ROIName ROIObservationLabel RTPlanLabel"""
)
STATIONS = _tags("StationName DeviceSerialNumber DetectorID XRayDetectorID XRaySourceID PlateID GantryID")
PATIENTS = _tags("PatientName PatientID")
TYPE_UIDS = _tags(  # they name a kind of thing, not a thing
    """SOPClassUID ReferencedSOPClassUID MediaStorageSOPClassUID TransferSyntaxUID RelatedGeneralSOPClassUID
    OriginalSpecializedSOPClassUID ReferencedRelatedGeneralSOPClassUIDInFile AvailableTransferSyntaxUID
    ReferencedSOPClassUIDInFile ReferencedTransferSyntaxUIDInFile SOPClassesInStudy EncryptedContentTransferSyntaxUID"""
)
DEVICE_TEXT = _tags(  # texts that scanners and software fill, not people; none is in table E.1-1
    """Manufacturer ManufacturerModelName SoftwareVersions SequenceName PulseSequenceName ReceiveCoilName
    ReceiveCoilManufacturerName TransmitCoilName TransmitCoilManufacturerName MultiCoilElementName ConvolutionKernel
    SecondaryCaptureDeviceManufacturer SecondaryCaptureDeviceManufacturerModelName
    SecondaryCaptureDeviceSoftwareVersions DetectorManufacturerName DetectorManufacturerModelName
    FilterType RescaleType ImagedNucleus ReconstructionMethod ScatterCorrectionMethod AttenuationCorrectionMethod
    ContrastBolusRoute RadiopharmaceuticalRoute CardiacFramingType CodingSchemeDesignator CodingSchemeVersion"""
)
LABELS = _tags(  # texts of type 1 that no rule of the table names: safe words, or a dummy
    """SegmentLabel SegmentAlgorithmName DimensionDescriptionLabel TrackingID StackID LUTLabel LUTExplanation
    WindowCenterWidthExplanation"""
)
CODE_TEXT = _tags("CodeValue CodeMeaning LongCodeValue")  # kept where the coding scheme is public
BINARY = _tags(
    """PixelData FloatPixelData DoubleFloatPixelData RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableData BluePaletteColorLookupTableData AlphaPaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData LUTData ICCProfile ExtendedOffsetTable ExtendedOffsetTableLengths
    PointCoordinatesData VectorGridData LongPrimitivePointIndexList"""
)


def _tables() -> dict[int, Action]:
    """Table E.1-1 with compound actions resolved; the repeating groups 50xx and 60xx go as a whole (see rule)."""
    columns = [
        (table.X_TAGS, Action.REMOVE),
        (table.X_Z_D_TAGS, Action.REMOVE),
        (table.Z_TAGS, Action.EMPTY),
        (table.X_Z_TAGS, Action.EMPTY),
        (table.Z_D_TAGS, Action.DUMMY),
        (table.X_D_TAGS, Action.DUMMY),
        (table.D_TAGS, Action.DUMMY),
        (table.U_TAGS, Action.UID),
        (table.X_Z_U_STAR_TAGS, Action.REFERENCE),
    ]
    return {(tag[0] << 16) | tag[1]: action for tags, action in columns for tag in tags if len(tag) == 2}


_TABLE = _tables()


@cache
def rule(tag: int, options: Options) -> Action:
    """What is done to a standard attribute (an even group); private ones are not asked for here."""
    group = tag >> 16
    if tag & 0xFFFF == 0 or group in (0x0000, 0x0002, 0x0004) or group >> 8 in (0x50, 0x60) or group == 0xFFFC:
        return Action.REMOVE  # group lengths, command, file meta, directory, curves, overlays, padding
    if not dictionary_has_tag(tag):
        return Action.REMOVE
    chosen = _own(tag, options)
    return chosen if chosen is not None else _TABLE.get(tag, Action.CATCH_ALL)


def _own(tag: int, options: Options) -> Action | None:
    """Rules that go before the table: options, and dummies that mean something."""
    if tag in PATIENTS:
        return Action.PATIENT
    if tag in STATIONS:
        return Action.STATION
    if tag in TEMPORAL and options.dates == "shift":
        return Action.MOVE
    if tag in CHARACTERISTICS and options.patient_characteristics:
        return Action.KEEP
    if tag == 0x00101010 and options.patient_characteristics:
        return Action.AGE
    if tag == 0x0008002A:
        return Action.DUMMY  # Acquisition DateTime: type 1 in original enhanced images
    if tag in LABELS:
        return Action.CLEAN if options.descriptors else Action.DUMMY
    if tag in DESCRIPTORS and options.descriptors:
        return Action.CLEAN
    return Action.KEEP if tag in TYPE_UIDS or tag in DEVICE_TEXT or tag in BINARY else None


def wordless(tag: int) -> Action:
    """What is done to a description of which no safe word is left: what the table says, or a dummy for a label."""
    return _TABLE.get(tag, Action.DUMMY if tag in LABELS else Action.EMPTY)
