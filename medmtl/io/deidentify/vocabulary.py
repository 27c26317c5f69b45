"""Words of radiology that say nothing about a person: what may stay of a description (PS3.15, Clean Descriptors).

A description is cut into words at everything that is no letter or digit, and where small letters meet capitals or
letters meet digits (``AxT2FLAIR``, ``ep2d_diff_b1000``). A word stays if it is in the list, a number of at most three
digits, or a number with a unit or a setting with a number (``5mm``, ``b1000``, ``TE30``). Everything else goes.
"""

import re

SAFE = frozenset(
    """
    ct mr mri pet pt nm spect us xa rf cr dx mg cbct cta mra mrv mrcp mrs angio angiography mammography tomography
    tomosynthesis radiograph radiography xray cxr fluoroscopy scan scans scout localizer localiser loc survey topogram
    surview image images imaging series study exam protocol routine standard std default dicom test phantom qa
    ax axial tra trans transverse transversal cor coronal sag sagittal obl oblique ap pa lat lateral lao rao mlo cc
    left right lt rt bilateral both upper lower anterior posterior superior inferior supine prone decubitus feet first
    3d 2d 4d 1d dyn dynamic static multi single stack slab slice slices thin thick thk vol volume volumetric mpr mip
    minip vr vrt recon reconstruction reformat resample resampled original primary derived secondary axials mosaic
    head brain skull face facial orbit orbits sinus sinuses iac iacs pituitary sella temporal bone bones neck carotid
    cervical thoracic lumbar sacral sacrum spine spinal cspine tspine lspine chest thorax thoracic lung lungs heart
    cardiac coronary aorta aortic mediastinum breast breasts axilla abdomen abdominal abd pelvis pelvic liver hepatic
    spleen splenic kidney kidneys renal pancreas pancreatic adrenal adrenals bowel colon rectum rectal bladder prostate
    uterus cervix ovary ovaries testis hip hips knee knees ankle ankles foot feet shoulder shoulders elbow elbows wrist
    wrists hand hands femur tibia humerus forearm finger toe extremity extremities joint joints whole body wb torso
    vessel vessels artery arterial vein veins venous portal portalvenous delayed delay late early equilibrium
    nephrographic excretory hepatobiliary phase phases pre post contrast contrasted native plain noncontrast without
    with wo wi gd gad gadolinium iodine c ce nc enhanced unenhanced bolus timing tracker perfusion diffusion
    t1 t2 t1w t2w t2s pd pdw flair stir swi swan gre fgre spgr flash mprage mp2rage rage bravo tfe ffe tse fse frfse se
    fast field turbo spin gradient echo echoes space cube vista haste ssfse bssfp fiesta trufi ciss epi ep2d ep diff dwi
    dti adc adcmap trace tracew fa tensor bval bvec bvalue b0 asl casl pcasl pasl 3dpcasl dsc dce tof pc phasecontrast
    dixon vibe lava thrive ideal inphase outphase opp opposed water fat fatsat fs spair sat suppressed suppression ir
    inversion recovery magnitude mag m p real imaginary map maps cbf cbv mtt tmax ttp ktrans rcbf rcbv rmtt relative
    fmri bold rest resting state task fieldmap field fm b1 b0map shim sense grappa caipi mb mri wip ref reference sbref
    short long axis sa la chamber 2ch 3ch 4ch cine tagging lge viability stress
    bone soft tissue lung detail sharp smooth kernel b c h i q br hr qr ul bl filter filtered fbp asir iterative safire
    admire idose veo low high dose lowdose hires hrct resolution ldct spectral dual energy mono monoenergetic calcium
    scoring score helical spiral sequence seq step axial gated ungated ecg breath hold breathhold free breathing
    inspiration expiration insp exp triggered trigger navigator resp respiratory
    hu fdg fluorodeoxyglucose florbetapir flutemetamol f18 c11 ga68 psma dotatate ac nac attenuation corrected
    correction uncorrected suv tracer fluoro
    part all other none unknown unk report summary of and or the to for in on at by per
    lesion lesions tumor tumour tumors organ organs nodule cyst mass edema oedema necrosis core enhancing background
    tissue label mask segmentation seg segment roi contour region gtv ctv ptv oar cord brainstem parotid mandible
    mm cm ms sec min kv kvp ma mas deg hz khz mhz ghz tesla t te tr ti fov nex nsa
    siemens philips ge gems medical systems healthcare healthineers toshiba canon hitachi fujifilm fuji hologic agfa
    carestream shimadzu samsung elscint picker varian elekta bruker uih united
    """.split()  # noqa: SIM905  a list of 500 quoted words is no easier to read
)
# Coding schemes whose values and meanings are published, so that they say nothing about a person (PS3.16 table 8-1).
PUBLIC_SCHEMES = frozenset({
    "DCM", "SCT", "SRT", "SNM3", "99SDM", "UCUM", "LN", "RADLEX", "FMA", "NCIT", "MA", "UMLS", "ICDO3", "I9C", "I10",
    "C4", "CPT", "MSH", "NEU", "NYUMCCG", "BARI", "RXNORM", "ITIS_TSN", "IBSI", "ISO3166_1", "UNS", "PUBCHEM_CID",
})  # fmt: skip
_UNITS = r"(?:mm|cm|ms|s|sec|min|kv|kvp|ma|mas|t|deg|hz|w|d|x|ch|mhz)"
_NUMBER = re.compile(rf"\d{{1,3}}{_UNITS}?|(?:b|te|tr|ti|ph|echo|phase|br|hr|qr|t|e|d)\d{{1,4}}")
_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[a-zA-Z]*")


def clean(text: str) -> str:
    """The safe words of ``text``, joined by single spaces; empty where there are none."""
    kept: list[str] = []
    for word in _WORD.findall(text):
        if is_safe(word):
            kept.append(word)
        elif (pieces := _PIECE.findall(word)) and "".join(pieces) == word and all(map(is_safe, pieces)):
            kept += pieces
    return " ".join(kept)


def is_safe(word: str) -> bool:
    """Whether one word is of the vocabulary, or a number that cannot be an identifier."""
    lower = word.lower()
    return lower in SAFE or (word.isascii() and _NUMBER.fullmatch(lower) is not None)
