"""Every code that reading and ingesting scans can end with: what it means and what to do about it.

``E-`` refused, ``R-`` repaired, ``W-`` accepted with a warning, ``I-`` ignored. Codes are stable and can be searched
for; ``docs/codes.md`` is this table (``python -m medmtl.io.reasons > docs/codes.md``).
"""

from medmtl.errors import SafetyRefusal, UserError

REMEDY: dict[str, str] = {
    # files
    "E-FILE-EMPTY": "export it again from the PACS",
    "E-FILE-OPEN": "give yourself permission to read it, or copy it again",
    "E-FILE-CHANGED": "wait until it is copied, then run again",
    "E-FILE-CONTENT": "restore it from its source, or drop it; its name promises an image",
    "E-FILE-LINK": "fetch the file that it stands for, or remove it",
    "I-FILE-FORMAT": "convert or unpack it if it holds images of the study",
    "I-FILE-HIDDEN": "nothing; move it out of the hidden folder if it is part of the data",
    "I-FILE-LINK": "nothing: it is in the tree under its own name",
    "I-FILE-OTHER": "nothing",
    "I-FILE-SPECIAL": "nothing",
    "E-SEC-PATH": "copy the file below the source folder",
    # DICOM
    "E-DCM-CINE": "export the frames as single images, or convert the clip to a video",
    "E-DCM-CLAIM": "the header claims more pixels than the file can hold: export it again from the PACS",
    "E-DCM-CODEC": "install the decoder, or export it again uncompressed",
    "E-DCM-DUPLICATE": "keep the right one of the files with this SOP Instance UID",
    "E-DCM-GAP": "export the missing slices again; or interpolate them (--gap resample)",
    "E-DCM-GEOMETRY": "export it again with Image Position and Image Orientation (Patient) from the scanner",
    "E-DCM-HEADER": "the header is cut off or malformed: export it again from the PACS",
    "E-DCM-INCOMPLETE": "export the damaged files again; or allow incomplete series (--allow-incomplete)",
    "E-DCM-IRREGULAR": "use the evenly spaced reconstruction; or resample uneven slices (--irregular resample)",
    "E-DCM-MOSAIC": "export the series again with Siemens' private header, or as single slices",
    "E-DCM-PALETTE": "the colour palette is damaged: export it again from the PACS",
    "E-DCM-PIXELS": "the pixel data are damaged: export it again from the PACS",
    "E-DCM-POSITION": "export the series again, split by what differs; or remove the surplus files",
    "E-DCM-RESCALE": "the intensity scale is damaged: export it again from the PACS",
    "E-DCM-SIZE": "crop the image, or raise the limit on its size (--max-case-gib)",
    "E-DCM-SPACING": "export it again with Pixel Spacing; without it nothing can be measured",
    "E-DCM-TILT": "keep the tilt as a sheared affine (--tilt keep), or allow it to be de-sheared (--tilt resample)",
    "E-DCM-TRUNCATED": "the file is cut off: copy it again from its source",
    "E-DCM-UNITS": "the slices of one volume have different units: export the series again",
    "R-DCM-DESHEARED": "nothing: slices were shifted in their plane to stand upright; the numbers say by how much",
    "R-DCM-INVERTED": "nothing: MONOCHROME1 was inverted, so that high values are bright",
    "R-DCM-PADDING": "nothing: pixels outside the image hold the value of air or the lowest real value",
    "R-DCM-RESAMPLED": "check that the task allows interpolated slices; the numbers say which",
    "W-DCM-CINE": "nothing: frames without a place are kept in order as time points",
    "W-DCM-CONTRAST": "check that the slices are of one acquisition: echo, kernel, inversion time or b-value differ",
    "W-DCM-DUPLICATE": "nothing: the copies are identical, one was used",
    "W-DCM-ENDS": "check that the first and last slices are there: numbers in the header disagree",
    "W-DCM-HU-ASSUMED": "check that the values are HU: the CT states no rescale",
    "W-DCM-INCOMPLETE": "damaged files of the series are missing from this volume",
    "W-DCM-LOCALIZER": "leave it out if the study is about the main stack",
    "W-DCM-MIXED-PATIENTS": "check that the folder should hold more than one patient; each is kept apart",
    "W-DCM-MONOCHROME1": "nothing: the values are physical (HU, Bq/ml), so only their display is inverted",
    "W-DCM-MOSAIC": "check how many slices were acquired: the header may state more than there are",
    "W-DCM-NO-PLACE": "tasks that need millimetres or sides cannot use it",
    "W-DCM-PALETTE": "nothing: DICOM gives them the first or the last colour",
    "W-DCM-PIXEL-SIZE": "sizes are measured at the detector, not in the patient",
    "W-DCM-PREAMBLE": "nothing: the file lacks its preamble; the exporting program is careless",
    "W-DCM-PRIVATE-SCALE": "divide by the stated factor to compare with other scans of this scanner",
    "W-DCM-REFERENCE": "check that the slices belong together: an anonymiser changed their frame of reference",
    "W-DCM-SLICE-SPACING": "check that no slices are missing: the header states another distance",
    "W-DCM-THICKNESS": "do not measure volumes: the slice's thickness is not known",
    "W-DCM-TILT": "resample if a tool behind needs a right angle",
    "W-DCM-TRAILING": "nothing: the pixels are whole; bytes behind them were left aside",
    "I-NOT-DICOM": "nothing",
    # NIfTI
    "E-NII-PLACE": "nothing in the header can be trusted; write the file again from its source with its place",
    "E-NII-CONSTANT": "every voxel has one value; export the image again, or leave it out",
    "E-NII-CRC": "the file was damaged on the way: copy it again from its source",
    "E-NII-DIMENSIONS": "give one image of two or three dimensions per file, or say what a fourth is (--fourth-axis)",
    "E-NII-DTYPE": "convert the voxels to integers, float32 or float64",
    "E-NII-FORMAT": "give a NIfTI-1 or NIfTI-2 file (.nii, .nii.gz, or .hdr with its .img)",
    "E-NII-HEADER": "the header is damaged or of another program's dialect; convert the source again",
    "E-NII-NAN": "repair the source; for an image (never for labels) up to 0.1 % can be filled (--fill-nan)",
    "E-NII-PAIR": "put the .img file of the same name beside the .hdr file, as a file and not as a link",
    "E-NII-SCALE": "the intensity scale is damaged; convert the source again",
    "E-NII-SIZE": "crop or tile the image, or raise the limit on its size (--max-case-gib)",
    "E-NII-SPACING": "correct the voxel size or its unit in the header",
    "E-NII-TRAILING": "the header describes only a part of the file; convert the source again",
    "E-NII-TRUNCATED": "the file is cut off: copy it again from its source",
    "R-NII-NAN": "voxels that were no number hold the lowest finite value; check what made them",
    "R-NII-UNITS": "nothing: lengths were converted to millimetres",
    "W-NII-BITPIX": "nothing: the data type counts; the writing program is careless",
    "W-NII-NAME": "rename the file by what it holds (.nii or .nii.gz)",
    "W-NII-NO-PLACE": "tasks that need millimetres or sides cannot use it; convert the source again with its place",
    "W-NII-PIXDIM": "nothing: the sform counts; the writing program is careless",
    "W-NII-SCALE": "nothing: a slope of zero or NaN means stored values, as the standard says",
    "W-NII-SFORM-QFORM": "check which of the two is right; the sform is used",
    "W-NII-SHEAR": "the slices are tilted; resample if a tool behind needs a right angle",
    "W-NII-TIME": "give the time step in the header if a task needs it",
    "W-NII-TRAILING": "nothing: the voxels are whole; bytes behind them were left aside",
    "W-NII-UNITS": "check that the voxel size is in millimetres",
    # masks
    "E-MASK-LABELS": "correct the mask, or declare these labels too (--mask-values)",
    "E-MASK-PLACE": "use the image that the mask was drawn on, or resample the mask on it (nearest neighbour)",
    "E-MASK-SHAPE": "use the image that the mask was drawn on, or resample the mask on it (nearest neighbour)",
    "E-MASK-VALUES": "a mask holds whole numbers, one per class; write it without interpolation",
    "R-MASK-ROUNDED": "nothing: values a little off whole numbers were rounded",
    "W-MASK-EMPTY": "check that nothing was to be found",
    "W-MASK-NO-PLACE": "nothing says that the mask lies where the image lies; look at one overlay",
    # segmentations and structure sets as masks
    "E-SEG-KIND": "export it as a binary segmentation, a label map, or closed contours",
    "E-SEG-PLACE": "draw it on the image that it references, or resample it on that image (nearest neighbour)",
    "E-SEG-READ": "export the segmentation again; or run without --segments",
    "E-SEG-REFERENCE": "export the images that it is drawn on with it, from the same archive",
    "E-SEG-TWICE": "keep one of the segmentations of this thing on this image",
    "W-SEG-GAPS": "check that the contours were finished: slices between the first and the last have none",
    "W-SEG-LEFT-OUT": "nothing, if points or open lines were meant: they enclose nothing",
    "W-SEG-MERGED": "nothing, if each of them is the thing; else give them different codes or labels",
    # ingesting
    "E-ING-BUG": "this is a defect of medmtl; the traceback is in log.txt of the private folder",
    "E-ING-EMPTY": "every voxel has one value; export the image again, or leave it out",
    "E-ING-MEMORY": "run with fewer --jobs, or on a machine with more memory",
    "E-ING-NAN": "repair the source; up to 0.1 % can be filled with --fill-nan",
    "E-ING-PATIENTS": "move each patient's files into a folder of their own; or run without --one-patient",
    "E-ING-SKIPPED": "correct the failures before it, then run again",
    "E-ING-TIMEOUT": "check the disk or the network that it lies on, or raise --timeout",
    "E-ING-WORKER": "run with fewer --jobs; if it stays, the file is damaged in a way that ends the decoder",
    "E-IMG-DAMAGED": "copy the file again from its source, or drop it",
    "E-RAS-DEPTH": "convert it to 8-bit colour or 16-bit grey yourself, or run with --keep-names",
    "I-DCM-DUPLICATE": "nothing: another copy of the same file was used",
    "I-DCM-KIND": "nothing; a SEG or RTSTRUCT can become masks of its images (--segments)",
    "R-ING-NAN": "voxels that were no number hold the lowest finite value; check what made them",
    "R-RAS-PAGE": "nothing: each page of the file is a case",
    "R-RAS-METADATA": "nothing: the pixels are the same",
    "R-RAS-PNG": "nothing: the pixels are the same",
    "W-ING-DOMAIN": "give --domain, or leave domains out of the study",
    "W-ING-LABEL-CONFLICT": "keep one row of each key; until then these cases have no label",
    "W-ING-LABEL-KEY": "fill in the key, or drop the row",
    "W-ING-LABEL-MISSING": "add rows for these cases; a missing label is allowed",
    "W-ING-LABEL-TEXT": "save the table as UTF-8, so that letters with accents are certain",
    "W-ING-LABEL-TWICE": "nothing: the rows say the same",
    "W-ING-LABEL-UNUSED": "check that --match gives what the key column holds",
    "W-ING-FOLDER-GROUPS": "check that each first folder is one patient; if it is a class or a site, give --group",
    "W-ING-NO-GROUP": "give --group, so that images of one patient stay in one split",
    # de-identification
    "E-DEID-KEY": "restore the key from its backup; a new key gives new pseudonyms, so choose a new output folder too",
    "E-DEID-KEY-MODE": "if nobody else has read it: chmod 0600 the file, chmod 0700 its folder",
    "E-DEID-KEY-PLACE": "keep the private folder apart from the source and the output folder",
    "E-DEID-PLACE": "choose an output folder that is neither inside the source nor around it",
    "E-DEID-SOURCE": "give the folder that holds the DICOM files",
    "E-DEID-LOCK": "wait until it is done; if none is running, remove the file named lock there",
    "E-DEID-VERIFY": "give the source folder and the private folder of the run that made the output",
    "E-DEID-SETTINGS": "run with the key and options of the first run, or choose another output folder",
    "E-DEID-READ": "export it again from the PACS, or leave it out",
    "E-DEID-KIND": "leave it out: only images, segmentations and radiotherapy objects can be de-identified",
    "E-DEID-BURNED": "look at it; if no text is in the pixels, run with --allow-burned-in",
    "E-DEID-DUPLICATE": "keep the right one of the files with this SOP Instance UID",
    "W-DEID-NO-PATIENT-ID": "each study counts as a patient; give the files a patient id to keep studies together",
}


def refusal(code: str, what: str, *, where: str = "") -> UserError:
    """The error of a known code; a code that the table does not hold is a defect."""
    kind = SafetyRefusal if code.startswith(("E-SEC-", "E-DEID-KEY", "E-DEID-PLACE")) else UserError
    return kind(code, what, REMEDY[code], where=where)


_OUTCOMES = {"E": "refused", "R": "repaired", "W": "warning", "I": "ignored"}


def as_markdown() -> str:
    """The whole table, in its own order."""
    rows = [f"| `{code}` | {_OUTCOMES[code[0]]} | {remedy} |" for code, remedy in REMEDY.items()]
    return "\n".join(
        [
            "# Codes of reading, ingesting and de-identifying scans",
            "",
            "| code | | what to do |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(as_markdown(), end="")
