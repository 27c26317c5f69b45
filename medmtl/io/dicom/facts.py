"""Which elements are kept of a header: facts of the acquisition; and, apart from them, what may identify a patient."""

from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.record import Fact

# Of how an image was made. No identifier, date, time of day, or text that a person typed (PS3.15 E.1-1).
TEXTS = (
    "Modality", "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "PatientPosition", "ScanningSequence",
    "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "ImagedNucleus", "ConvolutionKernel",
    "InPlanePhaseEncodingDirection", "FilterType", "RotationDirection", "Units", "RescaleType", "CountsSource",
    "DecayCorrection", "CorrectedImage", "ViewPosition", "Laterality", "ImageLaterality", "PresentationIntentType",
    "BurnedInAnnotation", "LossyImageCompression", "PhotometricInterpretation", "ConversionType", "AngioFlag",
    "AcquisitionType", "SoftwareVersions",
)  # fmt: skip
NUMBERS = (
    "MagneticFieldStrength", "RepetitionTime", "EchoTime", "EchoNumbers", "EchoTrainLength", "InversionTime",
    "FlipAngle", "ImagingFrequency", "NumberOfAverages", "PixelBandwidth", "PercentSampling",
    "PercentPhaseFieldOfView", "SAR", "SliceThickness", "SpacingBetweenSlices", "KVP", "XRayTubeCurrent", "Exposure",
    "ExposureTime", "GeneratorPower", "FocalSpots", "DataCollectionDiameter", "ReconstructionDiameter",
    "GantryDetectorTilt", "SpiralPitchFactor", "DistanceSourceToDetector", "DistanceSourceToPatient",
    "NumberOfTemporalPositions", "TemporalResolution", "DiffusionBValue", "FrameReferenceTime", "ActualFrameDuration",
    "SmallestImagePixelValue", "BitsStored",
)  # fmt: skip
# Of whom, where and when: to join tables on, and for the private folder only.
PRIVATE = (
    "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "AccessionNumber",
    "StudyID", "StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
    "StudyDescription", "SeriesDescription", "ProtocolName", "SeriesNumber", "StationName", "InstitutionName",
    "DeviceSerialNumber", "ContrastBolusAgent", "PatientIdentityRemoved",
)  # fmt: skip
_TEXTS = tuple((keyword, tag_of(keyword)) for keyword in TEXTS)
_NUMBERS = tuple((keyword, tag_of(keyword)) for keyword in NUMBERS)
FACT_TAGS = frozenset(tag_of(keyword) for keyword in (*TEXTS, *NUMBERS, *PRIVATE))


def acquisition_facts(elements: Elements) -> dict[str, Fact]:
    """What is there of ``TEXTS`` and ``NUMBERS``, by keyword: one value, or a tuple of several; NaN left out."""
    facts: dict[str, Fact] = {}
    for keyword, tag in _TEXTS:
        if texts := elements.texts(tag):
            facts[keyword] = texts[0] if len(texts) == 1 else texts
    for keyword, tag in _NUMBERS:
        numbers = tuple(value for value in elements.numbers(tag) if value - value == 0)
        if numbers:
            facts[keyword] = numbers[0] if len(numbers) == 1 else numbers
    return facts


def private_facts(elements: Elements, keywords: tuple[str, ...]) -> dict[str, str]:
    """What is there of ``PRIVATE`` and ``keywords``, as text; several values are joined by a backslash."""
    texts = {keyword: "\\".join(elements.texts(keyword)) for keyword in (*PRIVATE, *keywords)}
    return {keyword: text for keyword, text in texts.items() if text}
