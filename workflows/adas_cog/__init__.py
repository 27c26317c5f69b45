"""ADAS-Cog items and total, MMSE and CDR from T1-weighted MRI of the head (ADNI-like folders, OASIS-1)."""
