"""The run record -> one HTML page with everything in it -> an A4 PDF."""

import contextlib
import dataclasses
import datetime
import html
import io
import logging
import os
import platform
import re
import warnings
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from lab.errors import InputError
from lab.recipe import recipe_groups
from lab.record import as_json
from report import answers, extracts, fonts
from report.page import TEMPLATES, data_url, templates

QUESTION_NAMES = {key: f"Question {number}" for key, number, _ in answers.QUESTIONS}

INSTALL_PANGO = {
    "Linux": "sudo apt-get install -y libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 (Debian, Ubuntu) "
    "or sudo dnf install -y pango (Fedora)",
    "Darwin": "brew install pango",
    "Windows": "pacman -S mingw-w64-ucrt-x86_64-pango in an MSYS2 shell (https://www.msys2.org)",
}

# It says once a font that it subsets with fontTools: the PDF is the same.
logging.getLogger("weasyprint").addFilter(lambda entry: "HarfBuzz-Subset" not in entry.getMessage())


def check_renderer():
    """InputError, with the command to run, if WeasyPrint or its system libraries are missing."""
    try:
        # It prints a banner of its own where a library is missing.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import weasyprint  # noqa: F401
    except OSError as error:
        hint = INSTALL_PANGO.get(platform.system(), "install Pango 1.44 or newer")
        library = str(error).partition(":")[0].removeprefix("cannot load library ").strip("'\" ")
        raise InputError(f"the PDF needs a system library ({library}): {hint}") from None


def log_pieces(text, history):
    """The training log in pieces (text, what it is), folded if it is long: first, best and last epoch.

    The best epoch is the first of the highest test accuracy. A piece without text says what is left out.
    """
    epochs = [f"Epoch: {block}".strip() for block in ("\n" + text).split("\nEpoch: ")[1:]]
    n = len(epochs)
    if n <= 4:
        return [("\n".join(epochs), None)]
    best = 1 + max(range(n), key=lambda i: history[i].test_accuracy) if len(history) == n else n
    about = {1: "first epoch", n: "last epoch, whose weights are used"}
    note = "highest test accuracy of the log; only shown, not selected"
    about[best] = f"{about[best]}; {note}" if best in about else f"epoch {best}: {note}"
    pieces, shown = [], 0
    for epoch in sorted(about):
        if epoch > shown + 1:
            left_out = f"epochs {shown + 1} to {epoch - 1}" if epoch > shown + 2 else f"epoch {epoch - 1}"
            pieces.append(("", f"{left_out} left out"))
        pieces.append((epochs[epoch - 1], about[epoch]))
        shown = epoch
    return pieces


def setting_columns(values, columns=3):
    """{name: value} of the hyperparameters as columns of a table, each [(heading, [(name, value)])]."""

    def shown(value):
        return answers.setting(value) if isinstance(value, bool) else f"{value}"

    filled = [[] for _ in range(columns)]
    for heading, names in recipe_groups().items():
        shortest = min(filled, key=lambda column: sum(2 + len(rows) for _, rows in column))
        shortest.append((heading, [(name, shown(values[name])) for name in names]))
    return filled


def number(page, names):
    """Number the labels of a page and fill its cross-references, `<a href="#target"></a>`.

    A label is `<b data-label="Figure target"></b>`; each kind is counted by itself, in order. `names` holds
    what further targets are called: {"q06": "Question 6"}. InputError for a target that is not there.
    """
    counts, names = Counter(), dict(names)

    def label(match):
        kind, target = match.groups()
        counts[kind] += 1
        names[target] = f"{kind} {counts[kind]}" if kind != "Reference" else f"[{counts[kind]}]"
        return {
            "Reference": "",  # the list shows its numbers itself
            "Section": f'<span class="section-number">{counts[kind]}</span>',
        }.get(kind, f'<b class="label">{names[target]}.</b>')

    def reference(match):
        target = match[1]
        if target in names:
            return f'<a href="#{target}">{names[target]}</a>'
        if target.startswith("eq-"):  # the answer with this formula may have been replaced
            return f"equation {target[3:]}"
        there = ", ".join(f"#{name}" for name in sorted(names))
        raise InputError(f"an answer refers to #{target}; there are {there}")

    page = re.sub(r'<b data-label="(\w+) ([\w-]+)"></b>', label, page)
    names |= {target: f"equation {target[3:]}" for target in re.findall(r'<div id="(eq-[^"]+)"', page)}
    return re.sub(r'<a href="#([\w-]+)"></a>', reference, page)


def _read(path, how=Path.read_bytes):
    """A file of the run folder, by default its bytes. InputError if it cannot be read."""
    try:
        return how(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): run again with --force") from None


def read_arrays(record, run):
    """{name: array} of what the figures on the inside of the model are drawn from. InputError if gone."""
    import numpy as np

    def load(path):
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    return _read(run / record.shown.arrays, load)


def document_date(record):
    """When the report counts as made: the record's date, or SOURCE_DATE_EPOCH. The same, the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return record.date
    return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).isoformat()


def draw_figures(record, run):
    """{name: matplotlib figure} of all figures of the report that are drawn from the record."""
    from report import figures

    figures.use_report_type("".join(record.data.classes))
    results, found, arrays = record.results, record.findings, read_arrays(record, run)
    maps = (arrays[name] for name in ("maps", "map_blocks", "map_heads"))
    drawn = {
        "counts": figures.draw_counts(record.data.counts),
        "curves": figures.draw_history(record.training.history, results.baseline),
        "confusion": figures.draw_confusion_matrix(results.confusion_matrix, record.data.classes),
        "calibration": figures.draw_calibration(results.calibration),
        "rollout": figures.draw_rollout(arrays["pictures"], arrays["rollout"], record.shown.rollouts),
        "distance": figures.draw_distance(arrays["distance"], float(arrays["even_distance"])),
        "heads": figures.draw_heads(arrays["pictures"][0], *maps),
        "positions": figures.draw_positions(arrays["similarity"], arrays["rows"], arrays["columns"]),
        "filters": figures.draw_filters(arrays["filters"]),
    }
    if found.diary:
        drawn["diary"] = figures.draw_diary(found.diary)
    if found.comparison:
        drawn["shares"] = figures.draw_shares(found.comparison)
    return drawn


def fill_page(record, run, texts, drawings):
    """The report as a page whose labels and references are still to be numbered.

    `run`: the run folder; `texts`: as of `answers.answer_texts`; `drawings`: the URLs of the figures, by the
    names of `draw_figures`.
    """
    from report import figures

    environment = templates(autoescape=True)
    environment.filters.update(answers.FILTERS)
    log = _read(run / "training.log").decode()
    pictures = {
        name: [(e, data_url(_read(run / e.picture), "image/jpeg")) for e in getattr(record.shown, name)]
        for name in ("examples", "mistakes", "train_samples", "test_samples")
    }
    return environment.get_template("report.html.j2").render(
        answers.lookups(record),
        record=record,
        document_date=document_date(record),
        **pictures,
        extracts=extracts,
        example_rows=extracts.example_rows(pictures["examples"], record.data.classes),
        numbered=record.data.classes if len(record.data.classes) > figures.NAMED else (),
        questions=answers.QUESTIONS,
        answers=answers.render_answers(texts),
        own=answers.own_answers(record, texts),
        log=log_pieces(log, record.training.history),
        settings=setting_columns(record.recipe.values.as_dict()),
        arrays=read_arrays(record, run),
        changed_to=answers.changed_to,
        network=answers.NETWORKS,
        matrix_words=figures.confusion_words(record.results.confusion_matrix, record.data.classes),
        drawings=drawings,
    )


def render_html(record, run, texts):
    """The report as one HTML page that needs no other file; its arguments as of `fill_page`."""
    from report import figures

    drawings = {
        name: data_url(figures.as_svg(figure).encode(), "image/svg+xml")
        for name, figure in draw_figures(record, run).items()
    }
    page = number(fill_page(record, run, texts, drawings), QUESTION_NAMES)
    return page.replace("/* fonts */", fonts.font_css(plain_text(page)), 1)


def plain_text(page):
    """The text that a page sets: no tags, no data."""
    return html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL))


def _fetcher():
    """A WeasyPrint URL fetcher that reads data URLs only: no network, no files."""
    from weasyprint.urls import URLFetcher

    return URLFetcher(allowed_protocols={"data"})


def carried(record, run, texts):
    """{name: bytes} of what the PDF carries, so that with images and weights it can be drawn again: the
    record, the log, and the student's answers, look-ups done, with their pictures."""
    files = {name: digest for name, digest in record.files.items() if not name.endswith(".pdf")}
    found = {
        "record.json": as_json(dataclasses.replace(record, files=files)).encode(),
        "training.log": _read(run / "training.log"),
    }
    for key, (path, text) in answers.own_answers(record, texts).items():
        found[f"answers/{key}{answers.FILLED}"] = text.encode()
        pictures = [unquote(token.attrs["src"]) for token in answers.tokens(text) if token.type == "image"]
        found |= {f"answers/{name}": (path.parent / name).read_bytes() for name in pictures}
    return found


def render_report(record, run, answers_folder=None):
    """The report as (PDF bytes, HTML text), from the record and its run folder alone.

    The PDF is tagged for PDF/UA-1 (ISO 14289-1), and carries what verification draws it again from.
    """
    check_renderer()
    import weasyprint

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports its subsetting step by step
    texts = answers.answer_texts(record, answers_folder)
    page = render_html(record, run, texts)
    document = weasyprint.HTML(string=page, base_url=TEMPLATES.as_uri(), url_fetcher=_fetcher())
    date = datetime.datetime.fromisoformat(document_date(record))
    attached = [
        weasyprint.Attachment(string=content, name=name, description=name, created=date, modified=date)
        for name, content in carried(record, run, texts).items()
    ]
    return document.write_pdf(pdf_variant="pdf/ua-1", pdf_tags=True, attachments=attached), page
