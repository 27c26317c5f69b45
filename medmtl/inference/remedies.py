"""What to do about an input, for whoever predicts: reading speaks to whoever builds a study, who can drop its row."""

from medmtl.errors import UserError

REMEDY: dict[str, str] = {
    "E-FILE-EMPTY": "copy or export it again from where it came",
    "E-IMG-EMPTY": "copy or export it again from where it came",
    "E-IMG-DAMAGED": "copy it again from where it came, or leave it out",
    "E-IMG-FORMAT": "convert it to PNG, or leave it out",
    "E-IMG-FILE": "restore it, or its permissions, and run again",
    "E-IMG-COLOUR": "use a bundle that was trained on such images, or convert it as the training images were",
    "E-IMG-SMALL": "give the image in the resolution of the training images, or use a bundle for smaller ones",
    "E-DCM-CINE": "export the frames as single images",
    "E-NII-DIMENSIONS": "give each volume or time point as a file of its own",
    "E-VOL-DIMENSIONS": "give each grey volume or time point as a file of its own",
    "E-VOL-PLACE": "restore sform or qform, or give the DICOM files that it was made of",
    "E-VOL-SIZE": "crop it, or use a bundle that works on larger voxels",
    "E-VOL-SPACING": "metres or microns were taken for millimetres: correct xyzt_units and the affine",
    "E-ING-TIMEOUT": "check the disk or the network that it lies on; if it stays, leave it out",
}


def remedy(error: UserError) -> str:
    return REMEDY.get(error.code, error.remedy)
