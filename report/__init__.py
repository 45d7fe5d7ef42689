"""From the run record to the report and the submitted code. Reads the record; computes nothing anew."""

import hashlib
from pathlib import Path

from lab.bundle import bundle_names
from lab.errors import check_packages
from lab.files import sha256, write_whole
from lab.record import is_as_written, write_record, write_tables
from report.answers import check_answers
from report.fonts import missing_letters
from report.latex import check_latex, write_latex
from report.notebook import check_finished, write_notebook
from report.page import TEMPLATES
from report.render import check_renderer, render_report
from report.submission import assemble_submission, submission_of

__all__ = ["check_finished", "check_report", "drawing", "write_code", "write_notebook", "write_report"]


def drawing():
    """A digest of all templates and code that a report is measured and drawn with."""
    home = Path(__file__).parent
    folders = TEMPLATES, home, home.parent / "lab"
    files = [home.parent / f"{name}.py" for name in ("vit", "data", "train")]  # no other that lies there
    files += [path for folder in folders for path in folder.rglob("*.*")]
    files = sorted(path for path in files if path.suffix in (".py", ".j2", ".css", ".md"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def check_report(answers, latex, notebook):
    """InputError if the report could not be drawn in the end: found before the work, not after it."""
    check_renderer()
    check_answers(answers)
    if latex:
        check_latex(answers)
    if notebook:
        check_packages("--notebook", ("jupytext", "nbclient", "ipykernel"), " (80 MB)")


def write_code(record, folder):
    """Write the submitted code, the record and its tables into `folder`, where the weights lie already."""
    _, code, weights = bundle_names(record.student.id)
    write_whole(folder / code, assemble_submission(submission_of(record)))
    record.files = {name: sha256(folder / name) for name in (code, weights)}
    write_tables(folder / "run", record)
    write_record(folder / "run" / "record.json", record)


def write_report(record, folder, answers=None, latex=False):
    """Draw the PDF, the same page for the screen (run/report.html), and LaTeX if asked for, into `folder`.

    Yields what there is to say of it: (line, whether something failed).
    """
    pdf, *others = bundle_names(record.student.id)
    run = folder / "run"
    record.drawn_with = drawing()
    content, page = render_report(record, run, answers)
    write_whole(folder / pdf, content)
    write_whole(run / "report.html", page)
    record.files[pdf] = sha256(folder / pdf)
    write_record(run / "record.json", record)
    for name in others:
        if not is_as_written(record, folder / name):
            yield f"{name} is not the file that the run wrote; the report is of that one", False
    if missing := missing_letters("".join([record.student.name or "", *record.data.classes])):
        yield f"the report's fonts lack {missing}: look at it, a box may stand in its place", False
    if latex and (message := write_latex(record, run, folder / "latex", answers)):
        yield message, True
