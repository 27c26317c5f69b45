"""Headers of phantom series: everything that a scanner writes, with made-up people, places and dates all over it."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmtl.data.synthetic.dicom_phantom import Floats, Grid, Phantom
from medmtl.data.synthetic.dicom_truth import Expected, expected

CLASSES = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "PT": uid.PositronEmissionTomographyImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "US": uid.UltrasoundImageStorage,
    "OT": uid.SecondaryCaptureImageStorage,
}


@dataclass(frozen=True)
class Person:
    """Somebody who never lived: every string of him that is written into a header."""

    name: str
    patient_id: str
    birth: str
    other_id: str
    phone: str
    accession: str
    mother: str

    def strings(self) -> tuple[str, ...]:
        """What must not be found after de-identification."""
        return (
            *self.name.split("^"),
            self.patient_id,
            self.birth,
            self.other_id,
            self.phone,
            self.accession,
            self.mother,
        )


PEOPLE = (
    Person("Quenbythorpe^Wilhelmina", "MRN-47110815", "19310217", "SSN-907-22-4418", "+49-6221-5550173",
           "ACC9914837", "Oakenshawe"),
    Person("Zwingelbrecht^Thaddeus", "MRN-58221926", "19440523", "SSN-908-33-5529", "+49-6221-5550284",
           "ACC8823746", "Pinkertree"),
)  # fmt: skip
PLACES = ("Saint Eldermoor Infirmary", "17 Larkspur Causeway", "Hexwater", "Ward Juniper 7b", "ELDERMOOR_CT2")
STAFF = ("Brackenridge^Ottoline", "Vandersloot^Ignatius", "Mistlethwaite^Perpetua")
DATES = ("20190314", "20190315")
SERIAL, PRIVATE_TEXT = "SN-XJ77410", "seen by Dr Fennimorecote on 14.03.2019"
STRINGS = (*PLACES, *(part for one in STAFF for part in one.split("^")), *DATES, SERIAL, "Fennimorecote")


def made_uid(*what: object) -> str:
    """A UID below 2.25 that is the same for the same words."""
    digest = hashlib.sha256("\0".join(map(str, what)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big') >> 1 | 1 << 126}"


@dataclass
class Series:
    """One acquisition: where its frames lie, what they show, how intensities are stored, and whose they are."""

    kind: str
    seed: int = 0
    grid: Grid = field(default_factory=Grid)
    phantom: Phantom = field(default_factory=Phantom)
    modality: str = "CT"
    person: Person = PEOPLE[0]
    number: int = 1
    slope: float = 1.0
    intercept: float = -1024.0
    bits: int = 12
    signed: bool = False
    rescale: bool = True
    study: int = 1
    first: int = 1  # number of the first instance

    @property
    def series_uid(self) -> str:
        return made_uid(self.kind, self.seed, "series", self.study, self.number)

    @property
    def frame_of_reference(self) -> str:
        return made_uid(self.kind, self.seed, "place", self.study)

    def instance_uid(self, k: int) -> str:
        return made_uid(self.kind, self.seed, "instance", self.study, self.number, self.first + k)

    def stored(self, values: Floats) -> np.ndarray:
        """Values as stored integers, rounded; refuses (by assertion) what does not fit the bits."""
        codes = np.round((values - self.intercept) / self.slope)
        low, high = (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)
        assert low <= codes.min() and codes.max() <= high, (codes.min(), codes.max())
        return codes.astype(np.int16 if self.signed else np.uint16)

    def frames(self) -> list[Dataset]:
        """One data set per frame, ascending along the normal, pixels included."""
        return [self.frame(k) for k in range(len(self.grid))]

    def frame(self, k: int) -> Dataset:
        """The classic single-frame data set of frame ``k``."""
        ds = self.header(k)
        ds.InstanceNumber = self.first + k
        ds.ImagePositionPatient = numbers(self.grid.position(k))
        ds.ImageOrientationPatient = numbers(self.grid.axes.T[:2].ravel())
        ds.SliceLocation = numbers([self.grid.offsets_mm[k]])[0]
        self.put_pixels(ds, self.stored(self.phantom.value(self.grid.points(k))))
        return ds

    def header(self, k: int = 0) -> Dataset:
        """Everything but the geometry and the pixels of file ``k``."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if self.modality == "CT" else ["ORIGINAL", "PRIMARY", "M", "ND"]
        ds.SOPClassUID = CLASSES[self.modality]
        ds.SOPInstanceUID = self.instance_uid(k)
        ds.StudyInstanceUID = made_uid(self.kind, self.seed, "study", self.study)
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = self.series_uid, self.frame_of_reference
        ds.Modality, ds.SeriesNumber, ds.AcquisitionNumber = self.modality, self.number, 1
        ds.SliceThickness = numbers([self.step_mm()])[0]
        ds.ImagesInAcquisition = len(self.grid)
        _acquisition(ds)
        _people(ds, self.person)
        return ds

    def step_mm(self) -> float:
        """Mean distance of neighbouring frames along the normal; of a single frame its thickness, 2.5."""
        offsets = self.grid.offsets_mm
        return (offsets[-1] - offsets[0]) / (len(offsets) - 1) if len(offsets) > 1 else 2.5

    def put_pixels(self, ds: Dataset, stored: np.ndarray) -> None:
        """Image Pixel module for stored integers [rows, columns] or [frames, rows, columns], and the rescale."""
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = stored.shape[-2:]
        if stored.ndim == 3:
            ds.NumberOfFrames = len(stored)
        ds.PixelSpacing = numbers(self.grid.spacing_mm[::-1])
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, self.bits, self.bits - 1
        ds.PixelRepresentation = int(self.signed)
        if self.rescale:
            ds.RescaleIntercept, ds.RescaleSlope = numbers([self.intercept, self.slope])
        if self.modality == "CT":
            ds.RescaleType = "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "400"
        ds.add_new("PixelData", "OW", stored.astype(f"<{stored.dtype.str[1:]}").tobytes())

    def expected(self, name: str = "", **more: object) -> Expected:
        """The volume that this series holds."""
        return expected(name or self.kind, self.grid, self.phantom, step=self.slope, **more)

    def identifiers(self) -> tuple[str, ...]:
        """Every string of a person, place, date or UID in these headers."""
        uids = (self.series_uid, self.frame_of_reference, made_uid(self.kind, self.seed, "study", self.study))
        return (*self.person.strings(), *STRINGS, *uids, *(self.instance_uid(k) for k in range(len(self.grid))))


def numbers(values: "Floats | list[float] | tuple[float, ...]") -> list[str]:
    """Decimal strings of at most 16 characters, as exact as that allows."""
    return [_decimal(float(value)) for value in values]


def _decimal(value: float) -> str:
    text = repr(value + 0.0)
    for digits in range(16, 0, -1):
        if len(text) <= 16:
            return text
        text = f"{value:.{digits}g}"
    raise AssertionError(value)


def _acquisition(ds: Dataset) -> None:
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "Phantom Works", "Analytic 1", "1.0"
    ds.DeviceSerialNumber, ds.StationName = SERIAL, PLACES[4]
    ds.ProtocolName, ds.BodyPartExamined, ds.PatientPosition = "Head routine", "HEAD", "HFS"
    if ds.Modality == "CT":
        ds.KVP, ds.ConvolutionKernel = "120", "H30"
    if ds.Modality == "MR":
        ds.RepetitionTime, ds.EchoTime, ds.MagneticFieldStrength, ds.FlipAngle = "2000", "30", "3", "90"
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.EchoNumbers, ds.EchoTrainLength = "1", "1"
    if ds.Modality == "PT":
        ds.Units, ds.DecayCorrection, ds.CorrectedImage = "BQML", "START", ["DECY", "ATTN"]
        ds.SeriesType, ds.FrameReferenceTime = ["STATIC", "IMAGE"], "0"


def _people(ds: Dataset, person: Person) -> None:
    """Names, numbers, dates and free text where they occur in the wild: plain, nested, private and in prose."""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = person.name, person.patient_id, person.birth, "F"
    ds.PatientAge, ds.OtherPatientIDs, ds.PatientMotherBirthName = "088Y", person.other_id, person.mother
    ds.PatientAddress, ds.PatientTelephoneNumbers = f"{PLACES[1]}, {PLACES[2]}", person.phone
    ds.InstitutionName, ds.InstitutionAddress, ds.InstitutionalDepartmentName = PLACES[0], PLACES[2], PLACES[3]
    ds.ReferringPhysicianName, ds.PerformingPhysicianName, ds.OperatorsName = STAFF
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = DATES[0]
    ds.StudyTime, ds.SeriesTime, ds.AcquisitionTime, ds.ContentTime = "101112", "101113", "101114", "101115"
    ds.AccessionNumber, ds.StudyID = person.accession, "1"
    family = person.name.split("^")[0]
    ds.StudyDescription = f"Head of {family}"
    ds.SeriesDescription = "axial routine"
    ds.ImageComments = f"follow-up {DATES[1]}, call {person.phone}"
    ds.PatientComments = f"lives at {PLACES[1]}, mother née {person.mother}"
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = person.other_id, "TEXT"
    ds.OtherPatientIDsSequence = Sequence([other])
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = person.accession, "1"
    request.RequestedProcedureDescription = f"for {STAFF[0].split('^')[0]}, {DATES[1]}"
    ds.RequestAttributesSequence = Sequence([request])
    block = ds.private_block(0x0099, "PHANTOM WORKS", create=True)
    block.add_new(0x01, "LO", person.name)
    block.add_new(0x02, "LT", PRIVATE_TEXT)
    block.add_new(0x03, "DA", DATES[0])
