"""The submitted PDF: what it carries, and whether its pages look like those that are drawn here."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from lab.errors import InputError
from report.answers import FILLED

PDF_BYTES = 10**8
CARRIED_BYTES, CARRIED_FILES = 10**8, 100
SCALE = 1.5  # 108 dots an inch: a full stop of the text has two
# So much of 255 may a dot differ, and so many dots of a page: what another version of a library draws.
DIFFERENCE, DOTS = 40, 4
FAINT, FAINT_SHARE = 8, 0.001  # and so little, in so large a share of a page
# What could show something else than the page that is compared, by its name in the file.
ACTIVE = re.compile(rb"/(OpenAction|OCProperties|JavaScript|Launch|SubmitForm|RichMedia|Rendition)\b")


def open_pdf(content):
    """A PDF's bytes, opened. InputError if it is none."""
    try:
        return pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        raise InputError(f"the PDF cannot be read ({error})") from None


def carried_files(pdf):
    """{name: bytes} of the files that a PDF carries. InputError where they are too many or too large."""
    count, found = pdf.count_attachments(), {}
    if count > CARRIED_FILES:
        raise InputError(f"the PDF carries {count} files")
    try:
        for i in range(count):
            attached = pdf.get_attachment(i)
            found[attached.get_name()] = bytes(attached.get_data())
            if sum(map(len, found.values())) > CARRIED_BYTES:
                raise InputError("the PDF carries files of over 100 MB")
    except pypdfium2.PdfiumError as error:
        raise InputError(f"the PDF's attachments cannot be read ({error})") from None
    return found


def put_answers(files, run):
    """Write the answers among the files that a PDF carries, with their pictures, into run/answers."""
    (run / "answers").mkdir()
    for name, content in files.items():
        target = (run / name).resolve()
        # An answer whose look-ups are still to be done is a template: none of a stranger's is filled here.
        template = name.lower().endswith(".md") and not name.endswith(FILLED)
        if target.is_relative_to(run.resolve() / "answers") and not template:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def keep_answers(path, run):
    """The folder in `run` with the student's answers that the PDF at `path` carries; None without any."""
    run = Path(run)
    with contextlib.suppress(InputError, OSError):  # it is gone, or was changed: then it is drawn anew
        put_answers(carried_files(open_pdf(path.read_bytes())), run)
        if any((run / "answers").iterdir()):
            return run / "answers"
    return None


def _active(pdf):
    """What could change the page under a reader's eyes, in words; None where there is nothing."""
    if pdf.get_formtype() != pdfium.FORMTYPE_NONE:
        return "a form"
    copy = io.BytesIO()
    pdf.save(copy)  # in which each object is written out, and each name as it is meant
    found = ACTIVE.search(copy.getvalue())
    return f"an entry {found[1].decode()}" if found else None


def _marks(page):
    """The kinds of a page's annotations, in order."""
    kinds = []
    for i in range(pdfium.FPDFPage_GetAnnotCount(page.raw)):
        annotation = pdfium.FPDFPage_GetAnnot(page.raw, i)
        kinds.append(pdfium.FPDFAnnot_GetSubtype(annotation))
        pdfium.FPDFPage_CloseAnnot(annotation)
    return sorted(kinds)


def _letters(page):
    """The text of a page, without its spaces."""
    return "".join(page.get_textpage().get_text_bounded().split())


def _look_alike(page, own):
    """Whether two pages have the same size, annotations, letters, and dots but for a few."""
    if np.abs(np.subtract(page.get_size(), own.get_size())).max() > 0.5 or _marks(page) != _marks(own):
        return False
    if _letters(page) != _letters(own):  # also those that nobody sees, but a search finds
        return False
    seen, drawn = (p.render(scale=SCALE, rev_byteorder=True).to_numpy() for p in (page, own))
    if seen.shape != drawn.shape:
        return False
    difference = np.abs(np.subtract(seen, drawn, dtype=np.int16)).max(-1)
    return (difference > DIFFERENCE).sum() <= DOTS and (difference > FAINT).mean() <= FAINT_SHARE


def compare_pages(theirs, ours):
    """Where a PDF does not look like ours, a line each. Both opened."""
    if len(theirs) != len(ours):
        return [f"the PDF has {len(theirs)} pages, not {len(ours)}"]
    faults = [f"the PDF has {what}"] if (what := _active(theirs)) else []
    if different := [n for n, pages in enumerate(zip(theirs, ours), 1) if not _look_alike(*pages)]:
        which = f"page{'s' * (len(different) > 1)} {', '.join(map(str, different))}"
        faults.append(f"{which} of the PDF: not what this project draws from these weights and images")
    return faults
