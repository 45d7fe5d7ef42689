"""The report as LaTeX source: the page of the other report, taken apart by pandoc and set again.

pandoc reads the page into a tree; `Body` turns the tree into one that a person would have written LaTeX
from; pandoc writes it into templates/report.latex. So both reports hold the same words.

Nothing untrusted reaches TeX as a command: pandoc escapes all text, listings are checked for their own
end, and a formula may only use commands that are known to be harmless.
"""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from datetime import datetime

from PIL import Image

from lab.bundle import file_name
from lab.errors import InputError
from report import answers, fonts, render
from report.formulas import for_latex, printable

INSTALL_PANDOC = "--latex needs pandoc: pip install pypandoc-binary (35 MB)"
TEMPLATE = render.TEMPLATES / "report.latex"
# Classes of the page that are environments or commands of the template.
BOXES = ("demo-band", "headline", "contents", "row")
COMMANDS = {"demo-tag": r"\demotag", "hash": r"\fingerprint"}
LINE = 80  # letters, about, of a table's line
TEXT_WIDTH = 455  # pt, 160 mm
COMPILE_SECONDS = 180
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# Where it stands, blank lines before and after go: pandoc puts one between any two blocks, which in TeX ends
# a paragraph. A control character: `printable` has taken those out of the page.
JOIN = "\x01"


def check_latex(folder=None):
    """InputError if pandoc is missing or an answer holds a formula that LaTeX cannot take."""
    try:
        import pypandoc

        pypandoc.get_pandoc_version()
    except (ImportError, OSError):
        raise InputError(INSTALL_PANDOC) from None
    for path in sorted(folder.glob("*.md")) if folder else ():
        for token in answers.tokens(answers.read_answer(path)):
            if token.type.startswith("math"):
                for_latex(path, re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "0", token.content, flags=re.DOTALL))


def _raw(text, block=False):
    return {"t": "RawBlock" if block else "RawInline", "c": ["latex", text]}


def _para(*parts):
    """A paragraph of LaTeX texts and pandoc nodes."""
    return {"t": "Para", "c": [_raw(part) if isinstance(part, str) else part for part in parts]}


def _title(words):
    return _para(r"\codetitle{", *words, "}")


def _wrapped(name, blocks, options=""):
    """Blocks in a LaTeX environment."""
    start = _raw(f"\\begin{{{name}}}{options}{JOIN}", block=True)
    return [start, *blocks, _raw(f"{JOIN}\\end{{{name}}}", block=True)]


def _attributes(attr):
    """(id, classes, {name without "data-": value}) of a pandoc node."""
    identifier, classes, pairs = attr
    return identifier, classes, {key.removeprefix("data-"): value for key, value in pairs}


def _length(node):
    """About how many letters wide a pandoc node is set."""
    if isinstance(node, dict):
        node = node["c"][1] if node["t"] == "Image" else node.get("c", " ")
    return len(node) if isinstance(node, str) else sum(map(_length, node))


def _flat(blocks):
    """The inlines of paragraphs, one after the other."""
    return [inline for block in blocks for inline in block.get("c", [])]


class Body:
    """Turns pandoc's tree of the page into one that its LaTeX writer sets as a person would.

    `figures`: the folder of the figures, where the pictures within the page are written to.
    `targets`: the ids in the page, to which a link may lead.
    """

    def __init__(self, figures, targets):
        self.figures = figures
        self.targets = targets
        self.answer = None  # the file of the answer at hand
        self.share = 1.0  # of the line's width, of the box at hand
        self.nested = 0  # lists, boxes and figures around the block at hand: no float may begin there
        self.pictures = 0

    def walk(self, nodes):
        """Pandoc's blocks or inlines for those of the page. InputError for a kind that it cannot hold."""
        done = []
        for node in nodes:
            match node["t"], node.get("c"):
                case ("Header" | "Div" | "Figure" | "Table" | "Link" | "Image") as kind, content:
                    done += getattr(self, kind.lower())(*content)
                case ("Para" | "Plain" | "Emph" | "Strong") as kind, content:
                    inside = self.walk(content)
                    done += [{"t": kind, "c": inside}] if inside else []
                case "BlockQuote", content:
                    done.append({"t": "BlockQuote", "c": self.inside(content)})
                case "BulletList", items:
                    done.append({"t": "BulletList", "c": list(map(self.inside, items))})
                case "OrderedList", (style, items):
                    done.append({"t": "OrderedList", "c": [style, list(map(self.inside, items))]})
                case "CodeBlock", (_, text):
                    done.append(self.terminal(text))
                case "Code", (_, text):
                    done.append({"t": "Code", "c": [["", [], []], text]})
                case "Span", ((_, classes, _), content):
                    command = next((COMMANDS[name] for name in classes if name in COMMANDS), None)
                    inside = self.walk(content)
                    done += [_raw(command + "{"), *inside, _raw("}")] if command else inside
                case "Str", text:
                    done += self.word(text)
                case "Space" | "SoftBreak" | "LineBreak" | "HorizontalRule", _:
                    # A label that LaTeX sets itself leaves its space behind.
                    done += [node] if done else []
                case kind, _:
                    raise InputError(f"{self.answer}: --latex cannot set a {kind}")
        return done

    def inside(self, nodes, share=1.0):
        """The blocks within a list, a figure or a box that has this share of the width around it."""
        before = self.share
        self.nested, self.share = self.nested + 1, self.share * share
        done = self.walk(nodes)
        self.nested, self.share = self.nested - 1, before
        return done

    def header(self, level, attr, inlines):
        identifier, classes, _ = attr
        label = f"\\label{{{identifier}}}" if identifier else ""
        if self.answer:
            start, label = r"\paragraph{", ""
        elif "title" in classes:
            start, label = r"\reporttitle{", ""
        elif level == 2 and "unnumbered" not in classes:
            start = r"\section{"
        else:
            start = r"\phantomsection\subsection*{"
        return [_para(start, *self.walk(inlines), "}" + label)]

    def div(self, attr, nodes):
        identifier, classes, data = _attributes(attr)
        if "file" in data:
            self.answer = data["file"]
            done, self.answer = self.walk(nodes), None
            return done
        if "math" in classes:
            return [self.display(identifier, next(n for n in _flat(nodes) if n["t"] == "Image"))]
        if "references" in classes:
            # Each item is a span that carries its id.
            items = [_flat(item)[0]["c"] for item in nodes[0]["c"][1]]
            done = [_para(f"\\bibitem{{{attr[0]}}} ", *self.walk(inlines)) for attr, inlines in items]
            return _wrapped("thebibliography", done, "{99}")
        if "width" in data:
            # Pictures stand on one line, tables hang from one.
            top = r"\vspace{0pt}" * (nodes[0]["t"] in ("Div", "Table"))
            place = "b" if "sample" in classes else "t"
            start = f"[{place}]{{{data['width']}\\linewidth}}\\raggedright{top}"
            done = _wrapped("minipage", self.inside(nodes, float(data["width"])), start)
            done[-1] = _raw(f"{JOIN}\\end{{minipage}}\\hspace{{0.02\\linewidth}}%{JOIN}", block=True)
            return done
        if "pair" in classes:  # figures beside each other float together
            return _wrapped("figure", self.inside(nodes), "[!htbp]")
        name = next((name for name in BOXES if name in classes), None)
        return _wrapped(name, self.inside(nodes)) if name else self.walk(nodes)

    def display(self, identifier, image):
        """A formula on a line of its own, in the paragraph before it: a blank line would add space."""
        latex = for_latex(self.answer, _attributes(image["c"][0])[2]["latex"])
        if not identifier:
            return _raw(f"{JOIN}\\[\n{latex}\n\\]", block=True)
        number = identifier.removeprefix("eq-").replace("_", r"\_")
        start = f"{JOIN}\\begin{{equation}}\\tag{{{number}}}\\label{{{identifier}}}"
        return _raw(f"{start}\n{latex}\n\\end{{equation}}", block=True)

    def figure(self, attr, caption, nodes):
        identifier, classes, data = _attributes(attr)
        words = self.walk(_flat(caption[1]))
        if "code" in classes:
            option = "language=Python" * (data.get("language") == "python")
            listing = self.verbatim("lstlisting", option, nodes[0]["c"][1])
            return [_title(words), listing] if words else [listing]
        if "terminal" in classes:  # its paragraphs say what stands below them
            done = [_title(words)]
            for node in nodes:
                done += [_title(self.walk(node["c"]))] if node["t"] == "Para" else self.walk([node])
            return done
        if "rows" in classes:  # it may be longer than a page
            start = r"{\nopagebreak\captionsetup{hypcap=false}\captionof{figure}{"
            return [*self.inside(nodes), _para(start, *words, f"}}\\label{{{identifier}}}\\par}}")]
        label = f"}}\\label{{{identifier}}}{JOIN}"
        blocks = self.inside(nodes)
        if "settings" in classes:
            return _wrapped("table", [_para(r"\caption{", *words, label), *blocks], "[!htbp]")
        blocks = [_raw(r"\centering" + JOIN, block=True), *blocks, _para(JOIN + r"\caption{", *words, label)]
        return blocks if self.nested else _wrapped("figure", blocks, "[!htbp]")

    def verbatim(self, name, options, text):
        """Text in an environment that shows it letter by letter. InputError if it would end that."""
        if f"\\end{{{name}}}" in re.sub(r"\s", "", text):
            raise InputError(
                f"{self.answer or 'the page'}: code that holds \\end{{{name}}} cannot be shown with --latex"
            )
        text = text.expandtabs(4).rstrip("\n")
        return _raw(f"\\begin{{{name}}}[{options}]\n{text}\n\\end{{{name}}}", block=True)

    def terminal(self, text):
        """Text as a terminal shows it, small enough that no line is cut."""
        lines = text.splitlines()
        size = min(8.0, TEXT_WIDTH / (0.61 * 0.86 * max(map(len, lines), default=1)) - 0.01)
        font = f"formatcom=\\fontsize{{{size:.2f}}}{{{1.2 * size:.2f}}}\\selectfont"
        return self.verbatim("Verbatim", "samepage," * (len(lines) < 40) + font, text)

    # Tables

    def table(self, attr, caption, columns, head, bodies, _):
        """A booktabs table. Columns of words share the line's width, short ones take what they need."""
        title, head = self.walk(_flat(caption[1])), head[1]
        rows = [*head, *(row for body in bodies for row in (*body[2], *body[3]))]
        spec, wide = self.columns(columns, rows)
        # A long table goes on on the next page; with a caption it may float there first.
        breaks = len(rows) > (25 if title else 11) and not self.nested
        name = ("xltabular" if wide else "longtable") if breaks else ("tabularx" if wide else "tabular")
        place = "[t]" * (self.nested > 0)
        parts = [f"\\begin{{{name}}}" + r"{\linewidth}" * wide + f"{place}{{@{{}}{spec}@{{}}}}\n"]
        if title:
            title = [r"\caption{", *title, f"}}\\label{{{attr[0]}}}"]
            parts += [*title, "\\\\\n"] if breaks else []
        parts.append("\\toprule\n")
        for number, (_, cells) in enumerate(rows, 1):
            for column, cell in enumerate(cells):
                words = self.walk(_flat(cell[4])) or ["{}"]
                # In a bare cell TeX turns what stands beside right-to-left letters, too.
                if not wide and RIGHT_TO_LEFT.search(json.dumps(cell[4], ensure_ascii=False)):
                    words = [r"\mbox{", *words, "}"]
                parts += [" & " if column else "", *words]
            parts.append(" \\\\\n")
            if number == len(head):
                parts.append("\\midrule\n" + "\\endhead\n" * breaks)
        parts.append(f"\\bottomrule\n\\end{{{name}}}")
        if title and not breaks:
            return _wrapped("table", [_para("\\centering\\small\n", *title, "\n", *parts)], "[!htbp]")
        return [_para("{\\small\n", *parts, "}")]

    def columns(self, columns, rows):
        """(a LaTeX table's columns, whether some take what the line has left over)."""
        cells = list(zip(*(row[1] for row in rows)))
        widths = [max(_length(cell[4]) for cell in column) for column in cells]
        line = LINE * self.share
        wide = self.share < 1 or sum(widths) + 2 * len(widths) > line
        least = min(line / len(widths), 28, max(widths) - 1)  # at least one column takes the rest
        spec = ""
        for (align, _), column, width in zip(columns, cells, widths):
            right = align["t"] == "AlignRight" or "right" in column[-1][0][1]
            kind = "r" if right else "c" if align["t"] == "AlignCenter" else "l"
            spec += {"r": "Z", "c": "C", "l": "Y"}[kind] if wide and width > least else kind
        return spec, wide

    # Within a line

    def word(self, text):
        """A word, which may be broken in the middle if it is very long."""
        pieces = re.findall(r"[^_-]{1,12}|[_-]", text) if re.search(r"[^_-]{22}", text) else [text]
        nodes = [{"t": "Str", "c": piece} for piece in pieces]
        return [part for node in nodes for part in (_raw(r"\allowbreak{}"), node)][1:]

    def link(self, attr, text, target):
        """A reference to a part of the report, or a link to elsewhere."""
        url, key, words = target[0], target[0][1:], self.walk(text)
        if re.match(r"(https?://|mailto:)", url):
            return [{"t": "Link", "c": [["", [], []], words, [url, ""]]}]
        if key in render.QUESTION_NAMES and not words:
            words = self.word(render.QUESTION_NAMES[key].replace(" ", "\u00a0"))
        elif key.startswith("eq-") and key not in self.targets:  # its answer was replaced
            return [{"t": "Span", "c": [["", [], []], words or self.word(f"equation\u00a0{key[3:]}")]}]
        elif key not in self.targets:
            raise InputError(f"{self.answer}: there is no {url} to refer to")
        if "page" in attr[1]:
            return [_raw(r"\dotfill" * ("leader" in attr[1]) + f"\\pageref{{{key}}}")]
        if not words:
            return [_raw(f"\\cite{{{key}}}" if key.startswith("ref-") else f"\\cref{{{key}}}")]
        return [{"t": "Span", "c": [["", [], []], [_raw(f"\\hyperref[{key}]{{"), *words, _raw("}")]]}]

    def image(self, attr, alt, target):
        """A formula, a figure drawn from the record, or a picture that the page holds."""
        _, classes, data = _attributes(attr)
        url = target[0]
        if "formula" in classes:
            latex = for_latex(self.answer, data["latex"])
            return [{"t": "Math", "c": [{"t": "InlineMath"}, latex.replace("\n", " ")]}]
        options = "max width=\\linewidth"
        if "width" in data:
            side = f"{data['width']}\\linewidth"
            options = f"width={side},height={side},keepaspectratio"
        if "frame" in data:
            options += f",frame={data['frame']} 2pt,margin=0pt 3pt 0pt 0pt"
        if not url.startswith("figures/"):
            url = self.picture(url)
        return [_raw(f"\\includegraphics[{options}]{{{url}}}")]

    def picture(self, url):
        """Write the picture of a data URL as a file that LaTeX takes in. -> its path from the .tex"""
        kind, _, content = url.removeprefix("data:image/").partition(";base64,")
        content = base64.b64decode(content)
        self.pictures += 1
        path = self.figures / f"picture-{self.pictures:03}.{'jpg' if kind == 'jpeg' else 'png'}"
        if kind == "gif":
            Image.open(io.BytesIO(content)).convert("RGBA").save(path)
        else:
            path.write_bytes(content)
        return f"figures/{path.name}"


# The whole folder


def write_source(folder, record, run, answers_folder=None):
    """Write all but the compiled PDF into the empty `folder`. -> the path of the .tex

    InputError, with the name of the answer, for what LaTeX cannot take.
    """
    from matplotlib import pyplot

    (folder / "figures").mkdir()
    drawings = {}
    for name, figure in render.draw_figures(record, run).items():
        drawings[name] = f"figures/{name}.pdf"
        figure.savefig(folder / drawings[name], metadata={"CreationDate": None})
        pyplot.close(figure)
    page = render.fill_page(record, run, answers.answer_texts(record, answers_folder), drawings)
    render.number(page, render.QUESTION_NAMES)  # refuses a reference to nothing
    known = fonts.write_latex_fonts(folder / "fonts", render.plain_text(page))
    text = convert(page, folder / "figures", known)
    path = folder / file_name(record.student.id, "tex")
    path.write_text(text, encoding="utf-8")
    shutil.copyfile(render.TEMPLATES / "latexmkrc", folder / "latexmkrc")
    return path


def convert(page, figures, known):
    """The page as the text of the .tex; `known`: what the template has to know of the fonts.

    The pictures within the page are written to the folder `figures`. InputError as `write_source`.
    """
    import pypandoc

    read = {"format": "html-auto_identifiers", "extra_args": ["--sandbox"]}
    page = printable(page)
    tree = json.loads(pypandoc.convert_text(page, "json", **read))
    body = Body(figures, set(re.findall(r' id="([\w-]+)"', page)))
    tree["blocks"] = body.walk(tree["blocks"])
    # listings must be told of every letter beyond Latin-1, or it sets it in the wrong place.
    known = known | {"letters": "".join(sorted(letter for letter in set(page) if ord(letter) > 255))}
    tree["meta"] |= {
        key: {"t": "MetaInlines", "c": [_raw(value)] if value else []} for key, value in known.items()
    }
    # Without "smart" it keeps dashes and quotation marks as they are, where it would write ligatures.
    write = ["--sandbox", "--wrap=auto", "--columns=100", f"--template={TEMPLATE}"]
    text = pypandoc.convert_text(json.dumps(tree), "latex-smart", format="json", extra_args=write)
    return re.sub(rf"\s*{JOIN}\s*", "\n", text)


def _compile(folder, name, date):
    """Compile the .tex with latexmk, if it is installed. -> what to tell the user, or None."""
    if not shutil.which("latexmk"):
        return "latexmk is not installed: the .tex was not compiled"
    kept = {path.name for path in folder.iterdir()}
    environment = os.environ | {
        "openin_any": "p",  # TeX may read
        "openout_any": "p",  # and write below this folder only
        "SOURCE_DATE_EPOCH": str(int(datetime.fromisoformat(date).timestamp())),
        "FORCE_SOURCE_DATE": "1",
    }
    command = ["latexmk", "-norc", "-r", "latexmkrc", f"{name}.tex"]
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": COMPILE_SECONDS}
    failed = True
    # A cache of its own: two compilers at once would rewrite each other's fonts.
    cache = tempfile.TemporaryDirectory(prefix="report-fonts-")
    with cache as path, contextlib.suppress(subprocess.TimeoutExpired):
        settings["env"] = environment | {"TEXMFCACHE": path}
        failed = subprocess.run(command, cwd=folder, **settings).returncode != 0
    log = folder / f"{name}.log"
    kept.add(log.name if failed else f"{name}.pdf")
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    if not failed:
        return None
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    fault = next((line[2:] for line in said.splitlines() if re.match(r"! *[^ =]", line)), "no PDF")
    return f"{name}.tex did not compile ({fault.rstrip('.')}): see latex/{name}.log"


def write_latex(record, run, folder, answers_folder=None):
    """Write the LaTeX report anew to `folder`, compiled or not. -> a line for the user, or None"""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = write_source(folder, record, run, answers_folder).stem
    return _compile(folder, name, render.document_date(record))
