"""Words that say nothing about a person wherever they stand: what a search for identifiers leaves out."""

import ast
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import UID_dictionary

from medmtl.io.deidentify.vocabulary import is_safe
from medmtl.io.reasons import REMEDY

WORD = re.compile(r"[^\W_]+")
_PACKAGE = Path(__file__).parents[2]
_WRITERS = ("io", "ingest")  # packages whose texts end in the tables and reports of a study
REPORTS = frozenset(  # of reports, tables and log lines
    """
    about above accepted account after again against allowed also among another anything because been before
    began being below beside best between body both bytes cannot case cases charset chosen class code codes
    color colour column columns complete content copied copy could count counted data date dates days default
    detail does done down during each either else empty ended entry equal error errors even ever every exact
    example exists expected export failed false field fields file files final find folder folders follows font
    form found free from full further gave given gives goes going group groups have head height held here holds
    however html http https icon ignored image images index input inside instead into itself json keep kept
    kind know known lang large last later least leave left less like line lines link list little lock long look
    made make manifest many mark mean means medmtl message might missing mode more most move much must name
    named names near need needs never next nifti nii none note notes nothing null number numbers only open
    option options order other others otherwise output over path paths patient patients place please position
    private process program public quite range ratio read reader real reason reasons record refused remedy
    remove removed repair repaired report reports resample rest result results right rows same save scan scans
    script second seconds seen separate seven several sha256 shape share shift should show shown side since
    size skip skipped small some something soon source spacing span split splits start state stated status stay
    step still stop stops stored study style such sure table take taken test testing than that their them then
    there these they thing things this those three through time times title together total towards train
    training tree true turn type types under union unit units until upon used user uses usual utf8 valid
    validation value values version very volume volumes wait want warning warnings well went were what when
    where whether which while white whole whose width will with within without word words work would write
    written wrong year years yellow your zero
    """.split()  # noqa: SIM905
)


def folded(text: str) -> str:
    """Without accents, width and case."""
    decomposed = unicodedata.normalize("NFKD", text)
    if not text.isascii():
        decomposed = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return decomposed.casefold()


@cache
def common(word: str) -> bool:
    """Whether a folded word is safe, of a report, of DICOM's dictionary, or of one or two letters."""
    return is_safe(word) or word in REPORTS or word in _dictionary_words() or (word.isascii() and len(word) < 3)


@cache
def _dictionary_words() -> frozenset[str]:
    """Words of DICOM's dictionary (names and keywords), of its UIDs' names, and of our remedies."""
    texts = (
        *(entry[2] for entry in DicomDictionary.values()),
        *(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", entry[4]) for entry in DicomDictionary.values()),
        *(entry[4] for entry in DicomDictionary.values()),
        *(entry[0] for entry in UID_dictionary.values()),
        *REMEDY.values(),
    )
    return frozenset(word for text in texts for word in WORD.findall(folded(text)))


@cache
def own_words() -> frozenset[str]:
    """Every word that the code of medmtl may write about scans of its own accord: codes, messages, headings.

    Read from the code's strings, so that no list falls behind. Without the source files (compiled alone) it is empty,
    which makes a search find too much, never too little.
    """
    paths = (path for package in _WRITERS for path in sorted((_PACKAGE / package).rglob("*.py")))
    texts = (text for path in paths for text in _strings(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(word for text in texts for word in WORD.findall(folded(text)) if word.isalpha())


def _strings(tree: ast.Module) -> Iterator[str]:
    """The text of every string but docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value
