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
from pathlib import Path

from PIL import Image

from lab.errors import InputError
from report import answers, fonts, render
from report.formulas import for_latex, printable

INSTALL_PANDOC = "--latex needs pandoc: pip install pypandoc-binary (35 MB)"
TEMPLATE = render.TEMPLATES / "report.latex"
LANGUAGES = {"python": "Python", "py": "Python", "bash": "bash", "sh": "bash", "c": "C", "cpp": "C++"}
# Classes of the page that are environments or commands of the template.
BOXES = ("demo-band", "headline", "contents", "row")
COMMANDS = {"demo-tag": r"\demotag", "hash": r"\fingerprint"}
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}  # those that LaTeX takes in
LINE = 80  # letters, about, of a table's line
TEXT_WIDTH = 455  # pt, 160 mm
COMPILE_SECONDS = 180
# Where it stands, blank lines before and after go: pandoc puts one between any two blocks, which in TeX ends
# a paragraph. A control character: `printable` has taken those out of the page.
JOIN = "\x01"


# Text


def verbatim(text, environment):
    """Text for a verbatim environment. InputError if it would end that."""
    if f"\\end{{{environment}}}" in re.sub(r"\s", "", text):
        raise InputError(f"code that holds \\end{{{environment}}} cannot be shown with --latex")
    return text.expandtabs(4).rstrip("\n")


def terminal(text):
    """Text as a terminal shows it, small enough that no line is cut."""
    lines = text.splitlines()
    longest = max(map(len, lines), default=1)
    size = min(8.0, TEXT_WIDTH / (0.61 * 0.86 * longest) - 0.01)
    font = f"formatcom=\\fontsize{{{size:.2f}}}{{{1.2 * size:.2f}}}\\selectfont"
    options = font if len(lines) >= 40 else f"samepage,{font}"
    return f"\\begin{{Verbatim}}[{options}]\n{verbatim(text, 'Verbatim')}\n\\end{{Verbatim}}"


# The page


def check_latex(folder=None):
    """InputError if pandoc is missing or an answer holds a formula or picture that LaTeX cannot take."""
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
    """The title of a listing."""
    return _para(r"\codetitle{", *words, "}")


def _attributes(attr):
    """(id, classes, {name without "data-": value}) of a pandoc node."""
    identifier, classes, pairs = attr
    return identifier, classes, {key.removeprefix("data-"): value for key, value in pairs}


def _length(node):
    """About how many letters wide a pandoc node is set."""
    if isinstance(node, str):
        return len(node)
    if isinstance(node, dict):
        content = node.get("c", " ")
        return _length(content[1] if node["t"] == "Image" else content)
    return sum(map(_length, node))


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
        self.labelled = set()  # the ids of the formulas that have a label by now
        self.answer = None  # the file of the answer at hand
        self.share = 1.0  # of the line's width, of the box at hand
        self.nested = 0  # lists, boxes and figures around the block at hand: no float may begin there
        self.pictures = 0
        self.listed = ""  # the text of all listings

    def blocks(self, nodes):
        """Pandoc's blocks for those of the page. InputError for a kind that the page cannot hold."""
        done = []
        for node in nodes:
            match node["t"], node.get("c"):
                case (
                    "Para" | "Plain",
                    content,
                ):  # as a paragraph: pandoc would run "Plain" into the next block
                    inlines = self.inlines(content)
                    done += [_para(*inlines)] if inlines else []
                case "Header", content:
                    done += self.header(*content)
                case "CodeBlock", (_, text):
                    done.append(_raw(terminal(text), block=True))
                case "BulletList", items:
                    done.append({"t": "BulletList", "c": list(map(self.item, items))})
                case "OrderedList", (style, items):
                    done.append({"t": "OrderedList", "c": [style, list(map(self.item, items))]})
                case "BlockQuote", content:
                    done.append({"t": "BlockQuote", "c": self.inside(content)})
                case "HorizontalRule", _:
                    done.append(node)
                case "Div", content:
                    done += self.div(*content)
                case "Figure", content:
                    done += self.figure(*content)
                case "Table", content:
                    done += self.table(*content)
                case kind, _:
                    raise InputError(f"{self.answer}: --latex cannot set a {kind}")
        return done

    def inside(self, nodes, share=1.0):
        """The blocks within a list, a figure or a box that has this share of the width around it."""
        before = self.share
        self.nested, self.share = self.nested + 1, self.share * share
        done = self.blocks(nodes)
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
        return [_para(start, *self.inlines(inlines), "}" + label)]

    def item(self, nodes):
        """The blocks of a list's item, which is set tight if it was written so."""
        done = self.inside(nodes)
        if done and nodes[0]["t"] == "Plain":
            done[0]["t"] = "Plain"
        return done

    def div(self, attr, nodes):
        identifier, classes, data = _attributes(attr)
        if "file" in data:
            self.answer = data["file"]
            done, self.answer = self.blocks(nodes), None
            return done
        if "math" in classes:
            return [self.display(identifier, next(n for n in _flat(nodes) if n["t"] == "Image"))]
        if "references" in classes:
            return self.references(nodes[0]["c"][1])
        if "width" in data:
            # Pictures stand on one line, tables hang from one.
            top = r"\vspace{0pt}" * (nodes[0]["t"] in ("Div", "Table"))
            place = "b" if "sample" in classes else "t"
            start = f"[{place}]{{{data['width']}\\linewidth}}\\raggedright{top}"
            done = self.wrapped("minipage", self.inside(nodes, float(data["width"])), start)
            done[-1] = _raw(f"{JOIN}\\end{{minipage}}\\hspace{{0.02\\linewidth}}%{JOIN}", block=True)
            return done
        if "pair" in classes:  # figures beside each other float together
            return self.wrapped("figure", self.inside(nodes), "[!htbp]")
        name = next((name for name in BOXES if name in classes), None)
        return self.wrapped(name, self.inside(nodes)) if name else self.blocks(nodes)

    def wrapped(self, name, blocks, options=""):
        """Blocks in a LaTeX environment."""
        start = _raw(f"\\begin{{{name}}}{options}{JOIN}", block=True)
        return [start, *blocks, _raw(f"{JOIN}\\end{{{name}}}", block=True)]

    def references(self, items):
        """The page's list of references, each item a span that carries its id."""
        done = []
        for item in items:
            ((identifier, _, _), inlines) = _flat(item)[0]["c"]
            done.append(_para(f"\\bibitem{{{identifier}}} ", *self.inlines(inlines)))
        return self.wrapped("thebibliography", done, "{99}")

    def display(self, identifier, image):
        """A formula on a line of its own, in the paragraph before it: a blank line would add space."""
        latex = for_latex(self.answer, _attributes(image["c"][0])[2]["latex"])
        if not identifier:
            return _raw(f"{JOIN}\\[\n{latex}\n\\]", block=True)
        number = identifier.removeprefix("eq-").replace("_", r"\_")
        # Of two with the same number, the first has it.
        label = f"\\label{{{identifier}}}" if identifier not in self.labelled else ""
        self.labelled.add(identifier)
        equation = f"{JOIN}\\begin{{equation}}\\tag{{{number}}}{label}\n{latex}\n\\end{{equation}}"
        return _raw(equation, block=True)

    def figure(self, attr, caption, nodes):
        identifier, classes, data = _attributes(attr)
        words = self.inlines(_flat(caption[1]))
        if "code" in classes:
            return self.listing(words, data.get("language", ""), nodes[0]["c"][1])
        if "terminal" in classes:  # its paragraphs say what stands below them
            done = [_title(words)]
            for node in nodes:
                done += [_title(self.inlines(node["c"]))] if node["t"] == "Para" else self.blocks([node])
            return done
        if "rows" in classes:  # it may be longer than a page
            start = r"{\nopagebreak\captionsetup{hypcap=false}\captionof{figure}{"
            return [*self.inside(nodes), _para(start, *words, f"}}\\label{{{identifier}}}\\par}}")]
        label = f"}}\\label{{{identifier}}}{JOIN}"
        blocks = self.inside(nodes)
        if "settings" in classes:
            return self.wrapped("table", [_para(r"\caption{", *words, label), *blocks], "[!htbp]")
        blocks = [_raw(r"\centering" + JOIN, block=True), *blocks, _para(JOIN + r"\caption{", *words, label)]
        return blocks if self.nested else self.wrapped("figure", blocks, "[!htbp]")

    def listing(self, title, language, text):
        """Lines of code, under their title if they have one."""
        self.listed += text
        option = f"language={LANGUAGES[language.lower()]}" if language.lower() in LANGUAGES else ""
        try:
            text = verbatim(text, "lstlisting")
        except InputError as error:
            raise InputError(f"{self.answer}: {error}") from None
        listing = _raw(f"\\begin{{lstlisting}}[{option}]\n{text}\n\\end{{lstlisting}}", block=True)
        return [_title(title), listing] if title else [listing]

    # Tables

    def table(self, attr, caption, columns, head, bodies, _):
        """A booktabs table. Columns of words share the line's width, short ones take what they need."""
        caption, head = caption[1], head[1]
        rows = [*head, *(row for body in bodies for row in (*body[2], *body[3]))]
        spec, wide = self.columns(columns, rows)
        # A long table goes on on the next page; with a caption it may float there first.
        breaks = len(rows) > (25 if caption else 11) and not self.nested
        name = ("xltabular" if wide else "longtable") if breaks else ("tabularx" if wide else "tabular")
        place = "[t]" * (self.nested > 0)
        parts = [f"\\begin{{{name}}}" + r"{\linewidth}" * wide + f"{place}{{@{{}}{spec}@{{}}}}\n"]
        title = self.inlines(_flat(caption))
        if title:
            title = [r"\caption{", *title, f"}}\\label{{{attr[0]}}}"]
            parts += [*title, "\\\\\n"] if breaks else []
        parts.append("\\toprule\n")
        for number, (row_attr, cells) in enumerate(rows):
            parts.append("\\midrule\n" if "total" in row_attr[1] else "")
            for column, cell in enumerate(cells):
                parts += [" & " if column else "", *(self.inlines(_flat(cell[4])) or ["{}"])]
            parts.append(" \\\\\n")
            if number == len(head) - 1:
                parts.append("\\midrule\n" + "\\endhead\n" * breaks)
        parts.append(f"\\bottomrule\n\\end{{{name}}}")
        if breaks:
            return [_para("{\\small\n", *parts, "}")]
        if title:
            return self.wrapped("table", [_para("\\centering\\small\n", *title, "\n", *parts)], "[!htbp]")
        if self.nested:
            return [_para("{\\small ", *parts, "}")]
        return self.wrapped("flushleft", [_para("\\small\n", *parts)])

    def columns(self, columns, rows):
        """(a LaTeX table's columns, whether some take what the line has left over)."""
        count = len(columns)
        cells = [[row[1][i] for row in rows if i < len(row[1])] for i in range(count)]
        widths = [max(_length(cell[4]) for cell in column) for column in cells]
        spec = []
        for (align, _), column in zip(columns, cells):
            right = align["t"] == "AlignRight" or "right" in column[-1][0][1]
            spec.append("r" if right else "c" if align["t"] == "AlignCenter" else "l")
        line = LINE * self.share
        wide = self.share < 1 or sum(widths) + 2 * count > line
        if wide:
            flexible = [i for i, width in enumerate(widths) if width > min(line / count, 28)]
            for i in flexible or range(count):
                spec[i] = {"r": "Z", "c": "C", "l": "Y"}[spec[i]]
        return "".join(spec), wide

    # Within a line

    def inlines(self, nodes):
        """Pandoc's inlines for those of the page."""
        done = []
        for node in nodes:
            kind, content = node["t"], node.get("c")
            if kind in ("Emph", "Strong", "Strikeout"):
                inside = self.inlines(content)
                done += [{"t": kind, "c": inside}] if inside else []
            elif kind == "Span":
                commands = [COMMANDS[name] for name in content[0][1] if name in COMMANDS]
                inside = self.inlines(content[1])
                done += [_raw(commands[0] + "{"), *inside, _raw("}")] if commands else inside
            elif kind == "Code":
                done.append({"t": kind, "c": [["", [], []], content[1]]})
            elif kind == "Str":
                done += self.word(content)
            elif kind in ("Space", "SoftBreak", "LineBreak"):
                # A label that LaTeX sets itself leaves its space behind.
                done += [node] if done else []
            elif kind in ("Link", "Image"):
                done.append(getattr(self, kind.lower())(*content))
            else:
                raise InputError(f"{self.answer}: --latex cannot set a {kind}")
        for i, node in enumerate(done):  # no line break within 128 × 128
            if node == {"t": "Str", "c": "×"}:
                for side in done[max(i - 1, 0) : i + 2]:
                    if side["t"] in ("Space", "SoftBreak"):
                        side.update(t="Str", c="\u00a0")
        return done

    def word(self, text):
        """A word, which may be broken in the middle if it is very long."""
        pieces = re.findall(r"[^_-]{1,12}|[_-]", text) if re.search(r"[^_-]{22}", text) else [text]
        nodes = [{"t": "Str", "c": piece} for piece in pieces]
        return [part for node in nodes for part in (_raw(r"\allowbreak{}"), node)][1:]

    def link(self, attr, text, target):
        """A reference to a part of the report, or a link to elsewhere."""
        (_, classes, _), url, key = attr, target[0], target[0][1:]
        words = self.inlines(text)
        if re.match(r"(https?://|mailto:)", url):
            return {"t": "Link", "c": [["", [], []], words, [url, ""]]}
        if key in render.QUESTION_NAMES and not words:
            words = [{"t": "Str", "c": render.QUESTION_NAMES[key].replace(" ", "\u00a0")}]
        elif key.startswith("eq-") and key not in self.targets:  # its answer was replaced
            return {"t": "Span", "c": [["", [], []], words or self.word(f"equation\u00a0{key[3:]}")]}
        elif key not in self.targets:
            raise InputError(f"{self.answer}: there is no {url} to refer to")
        if "page" in classes:
            return _raw(r"\dotfill" * ("leader" in classes) + f"\\pageref{{{key}}}")
        if not words:
            return _raw(f"\\cite{{{key}}}" if key.startswith("ref-") else f"\\cref{{{key}}}")
        return {"t": "Span", "c": [["", [], []], [_raw(f"\\hyperref[{key}]{{"), *words, _raw("}")]]}

    def image(self, attr, alt, target):
        """A formula, a figure drawn from the record, or a picture that the page holds."""
        _, classes, data = _attributes(attr)
        url = target[0]
        if "formula" in classes:
            latex = for_latex(self.answer, data["latex"])
            return {"t": "Math", "c": [{"t": "InlineMath"}, latex.replace("\n", " ")]}
        if url.startswith("figures/"):
            return _raw(f"\\includegraphics[max width=\\linewidth]{{{url}}}")
        kind, _, content = url.removeprefix("data:").partition(";base64,")
        content = base64.b64decode(content)
        self.pictures += 1
        name = f"picture-{self.pictures:03}.{PICTURES.get(kind, 'png')}"
        if kind in PICTURES:
            (self.figures / name).write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).convert("RGBA").save(self.figures / name)
        if "width" not in data:
            return _raw(f"\\includegraphics[max width=\\linewidth]{{figures/{name}}}")
        side = f"{data['width']}\\linewidth"
        frame = f",frame={data['frame']} 2pt,margin=0pt 3pt 0pt 0pt" if "frame" in data else ""
        return _raw(f"\\includegraphics[width={side},height={side},keepaspectratio{frame}]{{figures/{name}}}")


# The whole folder


def _write_figures(folder, record, run):
    """The figures as PDF. -> {name: path from the .tex}"""
    from matplotlib import pyplot

    # matplotlib cannot embed the CFF font for Chinese as Type 42, which keeps text selectable.
    kind = 3 if any(letter > "\u2e7f" for letter in "".join(record.data.classes)) else 42
    drawings = {}
    for name, figure in render.draw_figures(record, run).items():
        with pyplot.rc_context({"pdf.fonttype": kind}):
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        pyplot.close(figure)
        drawings[name] = f"figures/{name}.pdf"
    return drawings


def write_source(folder, record, run, answers_folder=None):
    """Write everything but the compiled PDF into the empty `folder`. -> the .tex, a path

    InputError, with the name of the answer, for what LaTeX cannot take.
    """
    (folder / "figures").mkdir()
    drawings = _write_figures(folder / "figures", record, run)
    page = render.fill_page(record, run, answers_folder, drawings)
    render.number(page, render.QUESTION_NAMES)  # refuses a reference to nothing
    known = fonts.write_latex_fonts(folder / "fonts", render.plain_text(page))
    text = convert(page, folder / "figures", known)
    name = f"{record.student.id}_Lab8_Homework"
    (folder / f"{name}.tex").write_text(text, encoding="utf-8")
    shutil.copyfile(render.TEMPLATES / "latexmkrc", folder / "latexmkrc")
    return folder / f"{name}.tex"


def convert(page, figures, known):
    """The page as the text of the .tex; `known`: what the template has to know of the fonts.

    The pictures within the page are written to the folder `figures`. InputError as `write_source`.
    """
    import pypandoc

    read = {"format": "html-auto_identifiers", "extra_args": ["--sandbox"]}
    tree = json.loads(pypandoc.convert_text(printable(page), "json", **read))
    body = Body(figures, set(re.findall(r' id="([\w-]+)"', page)))
    tree["blocks"] = body.blocks(tree["blocks"])
    # listings must be told of every letter beyond Latin-1, or it sets it in the wrong place.
    letters = "".join(sorted({letter for letter in body.listed if ord(letter) > 255}))
    known = known | {"letters": letters, "strike": "x" * ('"t": "Strikeout"' in json.dumps(tree["blocks"]))}
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
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    kept.add(log.name if failed else f"{name}.pdf")
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    if failed:
        fault = next((line[2:] for line in said.splitlines() if re.match(r"! *[^ =]", line)), "no PDF")
        return f"{name}.tex did not compile ({fault.rstrip('.')}): see latex/{name}.log"
    missing = sorted(set(re.findall(r"Missing character: There is no (\S) ", said)))
    if missing:
        return f"no font has {' '.join(missing[:8])}: look at latex/{name}.pdf, it is missing there"
    return None


def write_latex(record, run, folder, answers_folder=None):
    """Write the LaTeX report to `folder`, which appears whole or stays as it was.

    Returns (its paths, a line for the user or None). A .tex that does not compile is still written.
    """
    check_latex(answers_folder)
    folder = Path(folder)
    about = {"prefix": f".{folder.name}-", "dir": folder.parent, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**about) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        name = write_source(new, record, run, answers_folder).stem
        message = _compile(new, name, render.document_date(record))
        if folder.exists():
            folder.rename(Path(beside) / "old")
        new.rename(folder)
    paths = [folder / f"{name}.{kind}" for kind in ("tex", "pdf")]
    return [path for path in paths if path.is_file()], message
