"""From the run record to the report and the submitted code. Reads the record; computes nothing anew."""

from report.answers import check_answers
from report.fonts import missing_letters
from report.latex import check_latex, write_latex
from report.notebook import check_finished, check_notebook, write_notebook
from report.outputs import check_report, write_code, write_report
from report.render import check_renderer, render_report
from report.submission import assemble_submission, submission_of

__all__ = [
    "assemble_submission", "check_answers", "check_finished", "check_latex", "check_notebook",
    "check_renderer", "check_report", "missing_letters", "render_report", "submission_of", "write_code",
    "write_latex", "write_notebook", "write_report",
]  # fmt: skip
