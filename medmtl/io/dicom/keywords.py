"""The keywords of the DICOM dictionary (PS3.6), for whoever lets a user name one."""

from difflib import get_close_matches
from functools import cache


@cache
def known_keyword(name: str) -> bool:
    """Whether DICOM has this keyword."""
    from pydicom.datadict import tag_for_keyword  # takes longer than anything that asks; most never do

    return tag_for_keyword(name) is not None


def closest_keyword(name: str) -> str:
    """The keyword that was probably meant, or ``""``."""
    from pydicom.datadict import keyword_dict

    return next(iter(get_close_matches(name, keyword_dict, n=1, cutoff=0.7)), "")
