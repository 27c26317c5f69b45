"""De-identification of DICOM: DICOM PS3.15 Annex E with keyed pseudonyms, and a scan that proves nothing is left."""
