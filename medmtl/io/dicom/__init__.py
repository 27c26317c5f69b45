"""DICOM files as volumes that are right, repaired with a note, or refused with a reason."""
