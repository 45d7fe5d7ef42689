"""The run record -> HTML -> an A4 PDF."""

import base64
import contextlib
import io
import logging
import platform
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2

from recipe import InputError
from report import answers
from report.source import ROOT

TEMPLATES = ROOT / "templates"

INSTALL_PANGO = {
    "debian": "sudo apt-get install -y libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0",
    "fedora": "sudo dnf install -y pango",
    "Darwin": "brew install pango",
    "Windows": "pacman -S mingw-w64-ucrt-x86_64-pango in an MSYS2 shell (https://www.msys2.org)",
}


def install_hint(system, os_release=""):
    """The command that installs WeasyPrint's system libraries on such a system."""
    if system != "Linux":
        return INSTALL_PANGO.get(system, "install Pango 1.44 or newer")
    likes = " ".join(
        line.partition("=")[2].strip("\"'")
        for line in os_release.splitlines()
        if line.startswith(("ID=", "ID_LIKE="))
    ).split()
    for name, family in (
        ("debian", "debian"),
        ("ubuntu", "debian"),
        ("fedora", "fedora"),
        ("rhel", "fedora"),
    ):
        if name in likes:
            return INSTALL_PANGO[family]
    return f"{INSTALL_PANGO['debian']} (Debian, Ubuntu) or {INSTALL_PANGO['fedora']} (Fedora)"


def check_renderer():
    """InputError, with the command to run, if WeasyPrint or its system libraries are missing."""
    try:
        # It prints a banner of its own where a library is missing.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import weasyprint  # noqa: F401
    except ImportError:
        raise InputError("the package weasyprint is missing: pip install -r requirements.txt") from None
    except OSError as error:
        release = Path("/etc/os-release")
        hint = install_hint(platform.system(), release.read_text() if release.is_file() else "")
        library = str(error).partition(":")[0].removeprefix("cannot load library ").strip("'\" ")
        raise InputError(f"the PDF needs a system library ({library}): {hint}") from None


def folded_log(text, first=2, last=2):
    """The training log with its middle epochs left out: (lines, epochs left out or None) pieces."""
    blocks = ("\n" + text).split("\nEpoch: ")
    epochs = [f"Epoch: {block}" for block in blocks[1:]]
    if len(epochs) <= first + last + 1:
        return "\n".join(epochs).strip(), None, ""
    left_out = f"epochs {first + 1} to {len(epochs) - last}"
    return "\n".join(epochs[:first]).strip(), left_out, "\n".join(epochs[-last:]).strip()


def _data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _package_fonts():
    """Faces that our dependencies bring: maths symbols, and a terminal face with box-drawing lines."""
    import matplotlib
    import ziamath

    plots = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return {
        "STIX Two Math": Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf",
        "DejaVu Sans Mono": plots / "DejaVuSansMono.ttf",
        "DejaVu Sans": plots / "DejaVuSans.ttf",
    }


def render_html(record, run, answers_folder=None):
    """The report as HTML text, every figure and picture in it. `run` is the run folder."""
    from pygments.formatters import HtmlFormatter

    from report import figures

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=answers.percent, whole=answers.whole)

    def drawing(figure):
        svg = figures.as_svg(figure).encode()
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"

    figures.use_report_type()
    results, history = record["results"], record["training"]["history"]
    return environment.get_template("report.html.j2").render(
        answers.lookups(record),
        record=record,
        examples=[e | {"url": _data_url(run / e["picture"], "image/png")} for e in record["examples"]],
        questions=answers.QUESTIONS,
        answers=answers.render_answers(record, answers_folder),
        log=folded_log((run / "training.log").read_text(encoding="utf-8")),
        curves=drawing(figures.draw_history(history, results["baseline"])),
        confusion=drawing(
            figures.draw_confusion_matrix(results["confusion_matrix"], record["data"]["classes"])
        ),
        fonts=_package_fonts(),
        code_style=HtmlFormatter(style="friendly").get_style_defs("pre"),
    )


def _fetcher(allowed):
    """A WeasyPrint URL fetcher that reads data URLs and files under the `allowed` paths, no network."""
    from weasyprint.urls import URLFetcher

    class LocalFetcher(URLFetcher):
        def fetch(self, url, headers=None):
            parts = urlsplit(url)
            if parts.scheme == "file":
                path = Path(unquote(parts.path)).resolve()
                if not any(path.is_relative_to(place) for place in allowed):
                    raise ValueError(f"{path} is outside the report's folders")
            elif parts.scheme != "data":
                raise ValueError(f"{url} is not on this machine")
            return super().fetch(url, headers)

    return LocalFetcher()


def _worth_saying(entry):
    """False for WeasyPrint's notice, once a font, that it subsets with fontTools: the PDF is the same."""
    return "HarfBuzz-Subset" not in entry.getMessage()


def render_pdf(record, run, answers_folder=None):
    """The report as PDF bytes, from the record and its run folder alone."""
    check_renderer()
    import weasyprint

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports its subsetting step by step
    logging.getLogger("weasyprint").addFilter(_worth_saying)
    allowed = [TEMPLATES, *_package_fonts().values()]
    base = TEMPLATES
    if answers_folder:
        allowed.append(answers_folder.resolve())
        base = answers_folder.resolve()
    document = weasyprint.HTML(
        string=render_html(record, run, answers_folder),
        base_url=base.as_uri() + "/",
        url_fetcher=_fetcher([path.resolve() for path in allowed]),
    )
    return document.write_pdf()
