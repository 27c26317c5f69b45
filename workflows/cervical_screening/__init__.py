"""Lesions, Swede scores and histology in colposcopy images, several to a patient (AnnoCerv, or your own folder)."""
