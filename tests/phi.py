"""A data set full of invented identifiers, each in the kinds of place where real ones hide, and what they are."""

import struct

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

MR, SEG = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"
ROOT = "1.2.826.0.1.3680043.8.498."
STUDY, SERIES, IMAGE, FRAME = (ROOT + f"{number}10203040506070" for number in (1, 2, 3, 4))
NAME = "Müllerová^Zdeňka=山田^太郎=やまだ^たろう"
PLANTED = (  # whole values and their parts: none may be left, in any case or order
    "Müllerová", "Zdeňka", "山田", "太郎", "やまだ", "HRN-770211", "Quackenbush", "Thaddeus", "ACC99817",
    "Sankt Elsewhere", "12 Nowhere Lane", "555-867-5309", "19511124", "19991231", "Gastroschisis", "SN-4471-X",
    "SCANNERBAY7", "Brzezinski", "Ermintrude", "UMRN55512", "Pelham", "WARDSEVEN", "Fotheringham", "Kowalczyk",
    "PRIVNAME", "OVERLAYTEXT", "AETITLEX", "Oberschwester", "LOCALCODE77", "Wodehouse", STUDY, SERIES, IMAGE, FRAME,
    ROOT + "99",
)  # fmt: skip


def csa(**tags: str) -> bytes:
    """A Siemens CSA header of format SV10; values are text, several separated by backslashes; names end in junk."""
    vrs = {"SliceNormalVector": b"FD", "NumberOfImagesInMosaic": b"US"}
    body = b""
    for name, value in tags.items():
        items = [part.encode() + b"\0" for part in value.split("\\")]
        label = (name.encode() + b"\0" + b"PRIVNAME" * 8)[:64]  # what memory held before
        body += struct.pack("<64si4siii", label, len(items), vrs.get(name, b"LO"), 1, len(items), 77)
        for item in items:
            body += struct.pack("<4i", len(item), len(item), 77, len(item)) + item + b"P" * (-len(item) % 4)
    return b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77) + body


def header(**changes: object) -> Dataset:
    """An MR image of 4 x 4 voxels with identifiers everywhere; ``changes`` are attributes by keyword, None removes."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = MR, IMAGE, STUDY
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.Modality = SERIES, FRAME, "MR"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = "19991231"
    ds.ContentDate, ds.StudyTime, ds.ContentTime = "20000102", "235959.123456", "000001"
    ds.AcquisitionDateTime = "19991231235959.500000+0100"
    ds.AccessionNumber, ds.StudyID = "ACC99817", "7"
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "SIEMENS", "Prisma", "syngo MR E11"
    ds.InstitutionName, ds.InstitutionAddress = "Sankt Elsewhere", "12 Nowhere Lane"
    ds.ReferringPhysicianName, ds.OperatorsName = "Quackenbush^Thaddeus", ["Kowalczyk^A", "Brzezinski^B"]
    ds.StationName, ds.DeviceSerialNumber = "SCANNERBAY7", "SN-4471-X"
    ds.StudyDescription, ds.SeriesDescription = "MR Head of Ermintrude", "t1_mprage sag Quackenbush"
    ds.ProtocolName = "t1_mprage"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, "HRN-770211", "19511124"
    ds.PatientSex, ds.PatientAge, ds.PatientWeight, ds.PatientSize = "F", "048Y", "61.5", "1.65"
    ds.OtherPatientIDs, ds.PatientTelephoneNumbers = ["UMRN55512", "HRN-770211"], "555-867-5309"
    ds.PatientComments, ds.PatientAddress = "known Gastroschisis, call Ermintrude", "12 Nowhere Lane"
    ds.CurrentPatientLocation, ds.ScheduledStationAETitle = "WARDSEVEN", "AETITLEX"
    ds.BodyPartExamined, ds.SliceThickness, ds.EchoTime = "HEAD", "1.0", "2.98"
    ds.RequestAttributesSequence = Sequence([_item(ScheduledProcedureStepDescription="for Fotheringham")])
    ds.ReferencedImageSequence = Sequence([_reference(IMAGE), _reference(ROOT + "99")])
    ds.ProcedureCodeSequence = Sequence([_code("LOCALCODE77", "99LOCAL", "MRI Head Oberschwester")])
    ds.AnatomicRegionSequence = Sequence([_code("69536005", "SCT", "Head")])
    ds.ContributingEquipmentSequence = Sequence([_nested()])
    ds.Rows = ds.Columns = 4
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelSpacing, ds.ImagePositionPatient = ["1", "1"], ["0", "0", "0"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.add_new(0x60003000, "OW", b"OVERLAYTEXT ")
    ds.add_new(0x60004000, "LT", "OVERLAYTEXT")
    ds.add_new(0x50003000, "OW", b"OVERLAYTEXT ")
    _add_private(ds)
    ds.PixelData = np.arange(16, dtype="<u2").tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.SourceApplicationEntityTitle = "AETITLEX"
    ds.preamble = b"PRIVNAME" * 16
    return ds


def segmentation() -> Dataset:
    """A segmentation that refers to the image of :func:`header`, by series, by source image and per frame."""
    ds = header(SOPClassUID=SEG, SOPInstanceUID=ROOT + "5", SeriesInstanceUID=ROOT + "6", Modality="SEG")
    series = _item(SeriesInstanceUID=SERIES, ReferencedInstanceSequence=Sequence([_reference(IMAGE)]))
    ds.ReferencedSeriesSequence = Sequence([series])
    derivation = _item(DerivationImageSequence=Sequence([_item(SourceImageSequence=Sequence([_reference(IMAGE)]))]))
    ds.PerFrameFunctionalGroupsSequence = Sequence([derivation])
    ds.SegmentSequence = Sequence([_item(SegmentNumber=1, SegmentLabel="Tumor of Quackenbush")])
    return ds


def _add_private(ds: Dataset) -> None:
    siemens = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    siemens.add_new(0x0A, "US", 3)
    siemens.add_new(0x0C, "IS", "1000")
    siemens.add_new(0x0D, "CS", "PRIVNAME")  # a safe attribute that does not hold what it should
    siemens.add_new(0x0F, "SH", "PRIVNAME")
    header_block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    text = csa(NumberOfImagesInMosaic="3", SliceNormalVector="0.0\\0.6\\0.8", PatientName="PRIVNAME", ProtocolName="a")
    header_block.add_new(0x10, "OB", text)
    header_block.add_new(0x20, "OB", b"PRIVNAME")
    philips = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    philips.add_new(0x0E, "FL", 0.25)
    other = ds.private_block(0x0011, "PRIVNAME CREATOR", create=True)
    other.add_new(0x01, "LO", "PRIVNAME")
    other.add_new(0x02, "SQ", [_item(PatientName="Wodehouse^PRIVNAME")])


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _reference(uid: str) -> Dataset:
    return _item(ReferencedSOPClassUID=MR, ReferencedSOPInstanceUID=uid)


def _nested() -> Dataset:
    """Three levels of sequences with names, a date, a UID and a private element at the bottom."""
    bottom = _item(PersonName="Wodehouse^Pelham", StudyDate="19991231", ReferencedSOPInstanceUID=IMAGE)
    bottom.private_block(0x0013, "PRIVNAME", create=True).add_new(1, "PN", "Wodehouse^Pelham")
    middle = _item(PurposeOfReferenceCodeSequence=Sequence([bottom]), InstitutionName="Sankt Elsewhere")
    return _item(Manufacturer="Wodehouse", ContributionDescription="by Wodehouse", ReferencedInstanceSequence=[middle])
