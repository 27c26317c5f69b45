"""What one file is, as a line of the index. Runs in a worker process."""

import json
import os
from dataclasses import asdict
from typing import Any

from medmtl.errors import UserError
from medmtl.ingest.sniff import empty, head_of, ignored_kind, kind_of, open_regular, unknown
from medmtl.ingest.tasks import Headers
from medmtl.ingest.walk import Found
from medmtl.io.dicom.header import Limits, NotDicom, header_of, header_to_json
from medmtl.io.raster import pages
from medmtl.io.reasons import refusal


def line_of(headers: Headers, found: Found) -> str:
    """What a file is, as JSON; of DICOM with its header, of what is refused or ignored with the reason."""
    record: dict[str, Any] = {"file": asdict(found), "kind": ignored_kind(found.path)}
    try:
        return json.dumps({**record, **_content(headers, found)})
    except UserError as error:
        return json.dumps({**record, "code": error.code, "what": error.what, "remedy": error.remedy})
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        return json.dumps({**record, "code": "E-FILE-OPEN", "what": what})
    except MemoryError:
        return json.dumps({**record, "code": "E-ING-MEMORY", "what": "the memory does not suffice for its header"})


def _content(headers: Headers, found: Found) -> dict[str, Any]:
    if not found.size:
        return {"code": empty(found.path), "what": "0 bytes"}
    path = headers.root / found.path
    with os.fdopen(open_regular(path), "rb") as stream:
        kind = kind_of(head_of(stream))
        if kind in ("dicom", "maybe-dicom"):  # read while it is open: opening is what a network disk takes long for
            limits = Limits(max_bytes=headers.max_bytes)
            try:
                status = os.fstat(stream.fileno())
                header = header_of(path, stream, status, limits=limits, keywords=headers.keywords)
                return {"kind": "dicom", "header": header_to_json(header)}
            except NotDicom:
                if kind == "dicom":
                    raise refusal("E-DCM-HEADER", "it has DICOM's preamble, and nothing of DICOM behind it") from None
                kind = "other"
    if kind == "other":
        code, what = unknown(found.path)
        return {"code": code, "what": what}
    return {"kind": "raster", "pages": pages(path)} if kind == "tiff" else {"kind": kind}
