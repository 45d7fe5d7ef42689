"""The same report as LaTeX source: run record + Markdown answers -> a folder that latexmk compiles.

The answers are parsed by the Markdown parser of the other report; pandoc turns what it made of them into
LaTeX, so that both reports hold the same words.

Nothing untrusted reaches TeX as a command. Looked-up text is escaped as it enters the template, pandoc
escapes the answers' text, listings are checked for their own end, and a formula may only use commands
that are known to be harmless.
"""

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import jinja2

from recipe import InputError
from report import answers
from report.render import TEMPLATES, folded_log

INSTALL_PANDOC = "--latex needs pandoc: pip install pypandoc-binary (35 MB)"
LANGUAGES = {"python": "Python", "py": "Python", "bash": "bash", "sh": "bash", "c": "C", "cpp": "C++"}
# An answer may link to a part of the report: the id in the page -> the label here.
LABELS = {
    "data": "sec:data",
    "model": "sec:model",
    "training": "sec:training",
    "evaluation": "sec:evaluation",
    "examples": "sec:examples",
    "curves": "fig:curves",
    "confusion": "fig:confusion",
    "table-data": "tab:data",
    "table-recipe": "tab:recipe",
    "table-classes": "tab:classes",
}
CITATIONS = {"ref-vit": "vit", "ref-adamw": "adamw", "ref-attention": "attention", "ref-neu": "neu"}
TEXT_WIDTH = 455  # pt, 160 mm
COMPILE_SECONDS = 180


# Escaping


class Latex(str):
    """Text that is LaTeX already; all other text is escaped when the template looks it up."""


SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    # After the end of a table row these would be read as an argument of \\.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\u00a0": "~",
    "\u2009": r"\,",
    "\u202f": r"\,",
}


def printable(text):
    """Without control characters, which TeX could read as commands and no reader would see."""
    text = re.sub(r"[\u2028\u2029\u0085]", "\n", text).replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", "", text
    )


def escape(value):
    """Text as LaTeX that shows it letter by letter."""
    if isinstance(value, Latex) or not isinstance(value, str):
        return value
    text = re.sub(r"\s*\n\s*", " ", printable(value))
    text = "".join(SPECIAL.get(letter, letter) for letter in text)
    # These pairs would become dashes and quotation marks.
    return Latex(re.sub(r"([-,<>])(?=\1)", r"\1{}", text))


def breakable(name):
    """A name, escaped, that may be broken in the middle of a very long word."""
    pieces = re.findall(r"[^\s_-]{1,12}|[\s_-]", name) if re.search(r"[^\s_-]{22}", name) else [name]
    return Latex(r"\allowbreak{}".join(escape(piece) for piece in pieces))


def verbatim(text, environment):
    """Text for a verbatim environment. InputError if it would end the environment."""
    if f"\\end{{{environment}}}" in re.sub(r"\s", "", text):
        raise InputError(f"code that holds \\end{{{environment}}} can't be shown with --latex")
    return Latex(printable(text).expandtabs(4).rstrip("\n"))


def terminal(text):
    """Text as a terminal shows it, small enough that no line is cut."""
    lines = text.splitlines()
    longest = max(map(len, lines), default=1)
    size = min(8.0, TEXT_WIDTH / (0.61 * 0.86 * longest) - 0.01)
    return Latex(
        f"\\begin{{Verbatim}}[{'samepage,' if len(lines) < 40 else ''}"
        f"formatcom=\\fontsize{{{size:.2f}}}{{{1.2 * size:.2f}}}\\selectfont]\n"
        f"{verbatim(text, 'Verbatim')}\n\\end{{Verbatim}}"
    )


# Formulas

# Commands that define, read, write or jump, and those that are of no use in LaTeX.
NOT_IN_FORMULAS = {
    r"\DeclareMathOperator",
    r"\class",
    r"\def",
    r"\href",
    r"\math",
    r"\newcommand",
    r"\newenvironment",
    r"\style",
    r"\tag",
    r"\tag*",
    r"\unicode",
    r"\verb",
}  # fmt: skip
ENVIRONMENTS = {"align": "aligned", "align*": "aligned", "gather": "gathered", "gather*": "gathered"}
ENVIRONMENTS |= dict.fromkeys(("array", "cases", "aligned", "alignedat", "gathered", "split"), None)
ENVIRONMENTS |= dict.fromkeys((f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V", "small")), None)


@lru_cache
def _known_commands():
    """The commands that the other report's setter of formulas knows, less those that do harm."""
    from latex2mathml import commands, symbols_parser

    def texts(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, tuple, list, set, frozenset)):
            for part in value:
                yield from texts(part)

    names = {text for name, value in vars(commands).items() if name.isupper() for text in texts(value)}
    names |= {*symbols_parser.SYMBOLS, r"\mathbfit", r"\dagger", r"\mid", r"\colon"}
    return {name for name in names if re.fullmatch(r"\\[A-Za-z]+\*?", name)} - NOT_IN_FORMULAS


def formula(path, latex):
    """A formula of an answer for LaTeX. InputError that names the file and the command if it may not
    stand in a formula: only commands from a list of harmless ones pass."""

    def refuse(command):
        raise InputError(f"{path}: {command} can't stand in a formula: {latex.strip()!r}")

    latex = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", printable(latex))  # a comment would hide what follows
    if "^^" in latex:
        refuse("^^")  # TeX's notation for any character, a backslash too
    for command in re.findall(r"\\(?:[A-Za-z]+|.|\n|$)", latex):
        if command[1:].isalpha() and command[1:].isascii():
            if command not in _known_commands() and command + "*" not in _known_commands():
                refuse(command)
        elif command[1:] not in {*"\\{}|,;:!#$%&_ >", "\n"}:  # \( and \[ would end the formula
            refuse(command)
    for name in re.findall(r"\\(?:begin|end)\s*(\{[^}]*\}|.)", latex, re.DOTALL):
        if name[1:-1] not in ENVIRONMENTS:
            refuse(f"\\begin{name}")
    if re.search(r"(?<!\\)(?:\\\\)*[$#]", latex):
        refuse("$ or #")
    latex = re.sub(
        r"\\(begin|end)\s*\{([^}]*)\}", lambda m: f"\\{m[1]}{{{ENVIRONMENTS[m[2]] or m[2]}}}", latex
    )
    # The maths font has its own bold letters; it has no bold version.
    latex = re.sub(r"\\(?:bm|boldsymbol|pmb)(?![A-Za-z])", r"\\symbf", latex)
    return "\n".join(line.strip() for line in latex.splitlines() if line.strip())


# Answers


def check_latex(folder=None):
    """InputError if pandoc is missing or an answer has a formula that LaTeX shall not see."""
    try:
        import pypandoc

        pypandoc.get_pandoc_version()
    except (ImportError, OSError):
        raise InputError(INSTALL_PANDOC) from None
    for path in sorted(folder.glob("*.md")) if folder else ():
        for latex in _formulas(answers._read(path)):
            formula(path, re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "0", latex, flags=re.DOTALL))


def _formulas(text):
    tokens = answers._markdown().parse(text)
    flat = [*tokens, *(child for token in tokens for child in token.children or [])]
    return [token.content for token in flat if token.type.startswith("math")]


def _markdown(path):
    """The answers' Markdown parser, its formulas and code blocks as plain HTML elements for pandoc."""

    def math(kind, display):
        def render(self, tokens, index, options, env):
            token = tokens[index]
            label = html.escape(token.info if kind == "math_block_label" else "")
            text = html.escape(formula(path, token.content).replace("\n", "\u2028"))
            element = f'<code class="math" data-display="{display}" data-label="{label}">{text}</code>'
            return f"<p>{element}</p>\n" if token.block else element

        md.add_render_rule(kind, render)

    def fence(self, tokens, index, options, env):
        language, _, title = tokens[index].info.strip().partition(" ")
        return (
            f'<pre class="{html.escape(language)}" data-title="{html.escape(title)}">'
            f"{html.escape(tokens[index].content)}</pre>\n"
        )

    md = answers._markdown()
    for kind, display in (
        ("math_inline", ""),
        ("math_inline_double", "yes"),
        ("math_block", "yes"),
        ("math_block_label", "yes"),
    ):
        math(kind, display)
    md.add_render_rule("fence", fence)
    return md


def _raw(text, block=False):
    return {"t": "RawBlock" if block else "RawInline", "c": ["latex", text]}


def _para(inlines):
    return {"t": "Para", "c": inlines}


def _length(node):
    """About how many letters wide a pandoc node is set."""
    if isinstance(node, list):
        return sum(map(_length, node))
    if not isinstance(node, dict):
        return 0
    kind, content = node["t"], node.get("c")
    if kind == "Str":
        return len(content)
    if kind in ("Space", "SoftBreak"):
        return 1
    if kind in ("Code", "Math"):
        return len(content[1])
    return _length(content)


class _Answers:
    """Turns pandoc's tree of the answers into one that its LaTeX writer sets as a person would."""

    def __init__(self, figures):
        self.figures = figures  # where pictures of the answers go
        self.path = None  # the answer at hand
        self.labels = set()  # numbers of equations so far
        self.pictures = 0
        self.nested = 0  # lists and quotations around the block at hand

    def blocks(self, nodes):
        done = []
        for node in nodes:
            kind, content = node["t"], node.get("c")
            if kind in ("Para", "Plain"):
                display = self.display(content)
                if display and done and done[-1]["t"] == "Para":
                    done[-1]["c"].append(_raw(f"\n{display}"))  # a blank line before it would add space
                elif display:
                    done.append(_para([_raw(display)]))
                else:
                    done.append(_para(self.inlines(content)))
            elif kind == "Header":
                done.append({"t": "Header", "c": [4, ["", [], []], self.inlines(content[2])]})
            elif kind == "CodeBlock":
                done.append(_raw(self.listing(*content), block=True))
            elif kind == "Table":
                done += self.table(content)
            elif kind == "BulletList":
                done.append({"t": kind, "c": [self.inside(item) for item in content]})
            elif kind == "OrderedList":
                done.append({"t": kind, "c": [content[0], [self.inside(item) for item in content[1]]]})
            elif kind == "BlockQuote":
                done.append({"t": kind, "c": self.inside(content)})
            elif kind == "HorizontalRule":
                done.append(node)
            elif kind in ("Div", "Figure"):
                done += self.blocks(content[-1])
            else:
                raise InputError(f"{self.path}: --latex can't set a {kind}")
        return done

    def inside(self, nodes):
        """The blocks of a list's item or a quotation."""
        self.nested += 1
        done = self.blocks(nodes)
        self.nested -= 1
        return done

    def display(self, inlines):
        """A paragraph that is one displayed formula, as LaTeX; else None."""
        if len(inlines) != 1 or inlines[0]["t"] != "Code":
            return None
        (_, classes, attributes), text = inlines[0]["c"]
        attributes = {key.removeprefix("data-"): value for key, value in attributes}
        if classes != ["math"] or not attributes["display"]:
            return None
        text = text.replace("\u2028", "\n")
        label = attributes["label"]
        if not label:
            return f"\\[\n{text}\n\\]"
        name = ""
        if re.fullmatch(r"[A-Za-z0-9.]+", label) and label not in self.labels:
            self.labels.add(label)
            name = f"\\label{{eq:{label}}}"
        return f"\\begin{{equation}}\\tag{{{escape(label)}}}{name}\n{text}\n\\end{{equation}}"

    def inlines(self, nodes):
        done = []
        for node in nodes:
            kind, content = node["t"], node.get("c")
            if kind == "Code":
                (_, classes, attributes), text = content
                if classes == ["math"]:
                    display = any(key.endswith("display") and value for key, value in attributes)
                    mode = {"t": "DisplayMath" if display else "InlineMath"}
                    node = {"t": "Math", "c": [mode, text.replace("\u2028", " ")]}
                else:
                    node = _raw(f"\\code{{{escape(text)}}}")
            elif kind == "Link":
                node = self.link(*content)
            elif kind == "Image":
                node = self.image(*content)
            elif kind == "Strikeout":
                done += [_raw(r"\strikeThrough{"), *self.inlines(content), _raw("}")]
                continue
            elif kind in ("Emph", "Strong"):
                node = {"t": kind, "c": self.inlines(content)}
            elif kind in ("Span", "Quoted"):
                node = {"t": kind, "c": [content[0], self.inlines(content[1])]}
            elif kind == "Str":
                node = {"t": kind, "c": printable(content)}
            elif kind not in ("Space", "SoftBreak", "LineBreak"):
                raise InputError(f"{self.path}: --latex can't set a {kind}")
            done.append(node)
        for i, node in enumerate(done):  # no line break within 128 × 128
            if node == {"t": "Str", "c": "×"}:
                for side in done[max(i - 1, 0) : i + 2]:
                    if side["t"] in ("Space", "SoftBreak"):
                        side.update(t="Str", c="\u00a0")
        return done

    def link(self, attributes, text, target):
        url = target[0]
        if url.startswith("#"):
            key = url[1:]
            if key in CITATIONS:
                return _raw(f"\\cite{{{CITATIONS[key]}}}")
            label = LABELS.get(key) or (key if key in answers_ids() else None)
            if label:
                start, end = _raw(f"\\hyperref[{label}]{{"), _raw("}")
                return {"t": "Span", "c": [["", [], []], [start, *self.inlines(text), end]]}
        elif re.match(r"(https?://|mailto:)", url):
            return {"t": "Link", "c": [["", [], []], self.inlines(text), [printable(url), ""]]}
        return {"t": "Span", "c": [["", [], []], self.inlines(text)]}

    def image(self, attributes, alt, target):
        """A picture from the answers' own folder; another one is only named, as in the PDF."""
        from urllib.parse import unquote

        from PIL import Image

        folder = self.path.parent.resolve()
        try:
            file = (folder / unquote(target[0])).resolve()
            if not file.is_relative_to(folder):
                raise OSError
            with Image.open(file) as picture:
                picture = picture.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            return {"t": "Span", "c": [["", [], []], self.inlines(alt)]}
        self.pictures += 1
        name = f"answer-{self.pictures}.png"
        picture.save(self.figures / name)
        width = min(160, picture.width * 25.4 / 96)  # mm; a page shows 96 pixels an inch
        width = min(width, 200 * picture.width / picture.height)
        shown = f"\\includegraphics[width={width / 160:.3f}\\linewidth]{{figures/{name}}}"
        return _raw(shown if width < 30 else f"\\begin{{center}}\n{shown}\n\\end{{center}}")

    def listing(self, attributes, text):
        _, classes, pairs = attributes
        options = []
        language = LANGUAGES.get(classes[0].lower()) if classes else None
        if language:
            options.append(f"language={language}")
        title = next((value for key, value in pairs if key.endswith("title")), "")
        if title:
            options.append(f"caption={{{escape(title).replace('–', '--')}}}")
        start = f"\\begin{{lstlisting}}[{', '.join(options)}]" if options else "\\begin{lstlisting}[]"
        try:
            return f"{start}\n{verbatim(text, 'lstlisting')}\n\\end{{lstlisting}}"
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def table(self, content):
        """A booktabs table. Columns of words share the line's width, short ones take what they need."""
        columns = [align["t"] for align, _ in content[2]]
        head = content[3][1]
        body = [row for part in content[4] for row in (*part[2], *part[3])]
        cells = [
            [[inline for block in cell[4] for inline in block.get("c", [])] for cell in row[1]]
            for row in (*head, *body)
        ]
        widths = [max(_length(row[i]) for row in cells) for i in range(len(columns))]
        letters = {"AlignRight": "r", "AlignCenter": "c"}
        spec = [letters.get(align, "l") for align in columns]
        wide = sum(widths) + 2 * len(widths) > 80
        if wide:
            share = 80 / len(widths)
            flexible = [i for i, width in enumerate(widths) if width > min(share, 28)]
            flexible = flexible or range(len(widths))
            for i in flexible:
                spec[i] = {"r": "Z", "c": "C", "l": "Y"}[spec[i]]
        breaks = len(body) > 10 and not self.nested  # a long table goes on on the next page
        name = ("xltabular" if wide else "longtable") if breaks else ("tabularx" if wide else "tabular")
        start = f"\\begin{{{name}}}" + (r"{\linewidth}" if wide else "") + f"{{@{{}}{''.join(spec)}@{{}}}}"

        def row(of_cells):
            line = []
            for cell in of_cells:
                line += [_raw(" & "), *self.inlines(cell)] if line else self.inlines(cell) or [_raw("{}")]
            return [*line, _raw(" \\\\\n")]

        around = "" if breaks else "center"
        inlines = [_raw((f"\\begin{{{around}}}" if around else "{") + f"\\small\n{start}\n\\toprule\n")]
        for number, of_cells in enumerate(cells):
            inlines += row(of_cells)
            if head and number == len(head) - 1:
                inlines.append(_raw("\\midrule\n" + "\\endhead\n" * breaks))
        end = f"\\end{{{around}}}" if around else "}"
        inlines.append(_raw(f"\\bottomrule\n\\end{{{name}}}\n{end}"))
        return [_para(inlines)]


def answers_ids():
    return {key for key, *_ in answers.QUESTIONS}


def _refer(blocks, labels):
    """Make "equation 1" a reference, wherever an equation has this number."""
    if isinstance(blocks, dict):
        return {key: _refer(value, labels) for key, value in blocks.items()}
    if not isinstance(blocks, list):
        return blocks
    done, i = [], 0
    while i < len(blocks):
        part = blocks[i : i + 3]
        if [isinstance(node, dict) and node.get("t") for node in part] in (
            ["Str", "Space", "Str"],
            ["Str", "SoftBreak", "Str"],
        ):
            word = re.fullmatch(r"(\W*)([Ee])quation", part[0]["c"])
            number = re.fullmatch(r"([A-Za-z0-9.]*[A-Za-z0-9])(\W*)", part[2]["c"])
            if word and number and number[1] in labels:
                name = "Cref" if word[2] == "E" else "cref"
                done += [{"t": "Str", "c": word[1]}] if word[1] else []
                done.append(_raw(f"\\{name}{{eq:{number[1]}}}"))
                done += [{"t": "Str", "c": number[2]}] if number[2] else []
                i += 3
                continue
        done.append(_refer(blocks[i], labels))
        i += 1
    return done


def convert_answers(record, folder, figures):
    """{question id: LaTeX} of all answers; pictures in them go to the folder `figures`."""
    import pypandoc

    tree, blocks = _Answers(figures), []
    mark = f"% {uuid.uuid4()} "  # parts the answers in what pandoc returns
    for key, (path, text) in answers.answer_texts(record, folder).items():
        page = _markdown(path).render(text)
        parsed = json.loads(
            pypandoc.convert_text(page, "json", format="html-auto_identifiers", extra_args=["--sandbox"])
        )
        tree.path = path
        blocks += [_raw(f"{mark}{key}", block=True), *tree.blocks(parsed["blocks"])]
    parsed["blocks"] = _refer(blocks, tree.labels)
    latex = pypandoc.convert_text(
        json.dumps(parsed), "latex", format="json", extra_args=["--sandbox", "--wrap=auto", "--columns=100"]
    )
    pieces = re.split(re.escape(mark) + r"(\w+)\n", latex)
    return {key: Latex(piece.strip()) for key, piece in zip(pieces[1::2], pieces[2::2])}


# Fonts


def _write_fonts(folder, text):
    """The report's faces as TrueType files. -> the fallback faces that `text` needs, scripts included.

    They travel with the .tex, so that it looks the same with every TeX Live, and like the other report.
    """
    import matplotlib
    import ziamath
    from fontTools.ttLib import TTFont

    folder.mkdir()
    covered = set()
    for name, source in (
        ("STIXTwoText-Regular", "stix-two-text-latin-400-normal"),
        ("STIXTwoText-Italic", "stix-two-text-latin-400-italic"),
        ("STIXTwoText-Bold", "stix-two-text-latin-700-normal"),
        ("STIXTwoText-BoldItalic", "stix-two-text-latin-700-italic"),
        ("SourceCodePro-Regular", "source-code-pro-latin-400-normal"),
        ("SourceCodePro-Semibold", "source-code-pro-latin-600-normal"),
    ):
        font = TTFont(TEMPLATES / "fonts" / f"{source}.woff2", recalcTimestamp=False)
        font.flavor = None
        font.save(folder / f"{name}.ttf")
        covered |= set(font.getBestCmap())
    for license in sorted((TEMPLATES / "fonts").glob("LICENSE*")):
        shutil.copyfile(license, folder / license.name)
    plots = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    maths = Path(ziamath.__file__).parent / "fonts"
    shutil.copyfile(maths / "STIXTwoMath-Regular.ttf", folder / "STIXTwoMath-Regular.ttf")
    shutil.copyfile(plots / "DejaVuSansMono.ttf", folder / "DejaVuSansMono.ttf")
    covered |= set(TTFont(folder / "STIXTwoMath-Regular.ttf", lazy=True).getBestCmap())
    missing = {ord(letter) for letter in text if ord(letter) > 126} - covered
    dejavu = set(TTFont(plots / "DejaVuSans.ttf", lazy=True).getBestCmap())
    if missing & dejavu:
        shutil.copyfile(plots / "DejaVuSans.ttf", folder / "DejaVuSans.ttf")
    return {
        "dejavu": bool(missing & dejavu),
        "more": bool(missing - dejavu),
        "arabic": bool(re.search(r"[\u0600-\u08ff\ufb50-\ufeff]", text)),
        "hebrew": bool(re.search(r"[\u0590-\u05ff]", text)),
        "chinese": bool(re.search(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text)),
    }


# The whole folder


def _environment():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters.update(
        percent=answers.percent, whole=answers.whole, terminal=terminal, breakable=breakable
    )
    return environment


def _write_figures(folder, record, run):
    """The figures as PDF, the example pictures as they are."""
    from report import figures

    figures.use_report_type()
    results = record["results"]
    drawn = {
        "curves": figures.draw_history(record["training"]["history"], results["baseline"]),
        "confusion": figures.draw_confusion_matrix(results["confusion_matrix"], record["data"]["classes"]),
    }
    for name, figure in drawn.items():
        figures.save_pdf(figure, folder / f"{name}.pdf")
    for number, example in enumerate(record["examples"], 1):
        shutil.copyfile(run / example["picture"], folder / f"example-{number:03}.png")


def _fill(folder, record, run, answers_folder):
    """Write everything but the compiled PDF into the empty `folder`. -> name of the .tex"""
    (folder / "figures").mkdir()
    _write_figures(folder / "figures", record, run)
    name = f"{record['student']['id']}_Lab8_Homework"
    environment = _environment()
    content = {
        **answers.lookups(record),
        "record": record,
        "examples": [
            example | {"name": f"figures/example-{number:03}.png"}
            for number, example in enumerate(record["examples"], 1)
        ],
        "questions": answers.QUESTIONS,
        "answers": convert_answers(record, answers_folder, folder / "figures"),
        "log": folded_log((run / "training.log").read_text(encoding="utf-8")),
    }
    body = environment.get_template("report.tex.j2").render(content, preamble="")
    # listings must be told of every letter beyond Latin-1, or it sets it in the wrong place.
    code = "".join(re.findall(r"\\begin\{lstlisting\}.*?\\end\{lstlisting\}", body, re.DOTALL))
    preamble = environment.get_template("preamble.tex.j2").render(
        record=record,
        fonts=_write_fonts(folder / "fonts", body),
        letters=Latex("".join(sorted({letter for letter in code if ord(letter) > 255}))),
        strike=r"\strikeThrough" in body,
        argmax=r"\argm" in body,
    )
    text = environment.get_template("report.tex.j2").render(content, preamble=Latex(preamble))
    (folder / f"{name}.tex").write_text(text, encoding="utf-8")
    for file in ("references.bib", "latexmkrc"):
        shutil.copyfile(TEMPLATES / file, folder / file)
    return name


def _compile(folder, name, date):
    """Compile the .tex with latexmk, if it is installed. -> what to tell the user, or None."""
    if not shutil.which("latexmk"):
        return "latexmk is not installed: the .tex was not compiled"
    kept = {path.name for path in folder.iterdir()}
    environment = os.environ | {
        # TeX may read and write below this folder only.
        "openin_any": "p",
        "openout_any": "p",
        "SOURCE_DATE_EPOCH": str(int(datetime.fromisoformat(date).timestamp())),
        "FORCE_SOURCE_DATE": "1",
    }
    try:
        process = subprocess.run(
            ["latexmk", "-norc", "-r", "latexmkrc", f"{name}.tex"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS,
        )
        failed = process.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    log = folder / f"{name}.log"
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if not failed:
        kept.add(f"{name}.pdf")
    elif log.is_file():
        kept.add(log.name)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    if failed:
        fault = next((line[2:] for line in said.splitlines() if re.match(r"! *[^ =]", line)), "no PDF")
        return f"{name}.tex did not compile ({fault.rstrip('.')}): see latex/{name}.log"
    missing = sorted(set(re.findall(r"Missing character: There is no (\S) ", said)))
    if missing:
        return (
            f"no font for {' '.join(missing[:8])} in {name}.tex: install one, "
            "for Chinese sudo apt-get install texlive-lang-chinese"
        )
    return None


def write_latex(record, run, folder, answers_folder=None):
    """Write the LaTeX report to `folder`, which appears whole or stays as it was.

    Returns (its paths, a line for the user or None). A .tex that does not compile is still written.
    """
    check_latex(answers_folder)
    folder = Path(folder)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        name = _fill(new, record, run, answers_folder)
        message = _compile(new, name, record["date"])
        new.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            new.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            new.rename(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(new)
    paths = [folder / f"{name}.{kind}" for kind in ("tex", "pdf")]
    return [path for path in paths if path.is_file()], message
