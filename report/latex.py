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
from report import answers, fonts, render

INSTALL_PANDOC = "--latex needs pandoc: pip install pypandoc-binary (35 MB)"
LANGUAGES = {"python": "Python", "py": "Python", "bash": "bash", "sh": "bash", "c": "C", "cpp": "C++"}
# An answer may link to a part of the report: the id in the page -> the label here.
SECTIONS = ("data", "model", "training", "evaluation", "predictions", "inside", "questions", "repeat")
FIGURES = ("counts", "samples-train", "samples-test", "curves", "confusion", "calibration")
FIGURES += ("examples", "mistakes", "rollout", "heads", "distance", "positions", "filters", "diary", "shares")
LABELS = {name: f"sec:{name}" for name in SECTIONS} | {name: f"fig:{name}" for name in FIGURES}
LABELS |= {f"table-{name}": f"tab:{name}" for name in ("data", "recipe", "classes")}
CITED = ("vit", "adamw", "muon", "mixup", "attention", "rollout", "ece", "lmvit", "transfer", "neu")
CITATIONS = {f"ref-{name}": name for name in CITED}
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
    return [token.content for token in answers._tokens(text) if token.type.startswith("math")]


def _markdown(path):
    """The answers' Markdown parser, its formulas and code blocks as plain HTML elements for pandoc."""

    def math(kind, display):
        def render(self, tokens, index, options, env):
            token = tokens[index]
            label = html.escape(token.info.removeprefix("eq-") if kind == "math_block_label" else "")
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

    def image(self, tokens, index, options, env):
        token = tokens[index]
        return f'<img src="{html.escape(token.attrs["src"])}" alt="{html.escape(token.content)}">'

    md = answers._markdown()
    for kind, display in (
        ("math_inline", ""),
        ("math_inline_double", "yes"),
        ("math_block", "yes"),
        ("math_block_label", "yes"),
    ):
        math(kind, display)
    md.add_render_rule("fence", fence)
    md.add_render_rule("image", image)
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
        self.labels = set()  # numbers of all equations
        self.labelled = set()  # those that have a label by now
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
        if label not in self.labelled:
            self.labelled.add(label)
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
        if not url.startswith("#"):
            if re.match(r"(https?://|mailto:)", url):
                return {"t": "Link", "c": [["", [], []], self.inlines(text), [printable(url), ""]]}
            return {"t": "Span", "c": [["", [], []], self.inlines(text)]}
        key = url[1:]
        if key in CITATIONS:
            return _raw(f"\\cite{{{CITATIONS[key]}}}")
        if key.startswith("eq-"):
            if key[3:] in self.labels:
                return _raw(f"\\cref{{eq:{key[3:]}}}")
            # The answer with this formula was replaced.
            text = text or [{"t": "Str", "c": f"equation\u00a0{key[3:]}"}]
            return {"t": "Span", "c": [["", [], []], self.inlines(text)]}
        question = {name: number for name, number, *_ in answers.QUESTIONS}.get(key)
        label = LABELS.get(key) or (key if question else None)
        if not label:
            raise InputError(f"{self.path}: there is no #{key} to refer to")
        if not text and not question:
            return _raw(f"\\cref{{{label}}}")
        text = text or [{"t": "Str", "c": f"Question\u00a0{question}"}]
        start, end = _raw(f"\\hyperref[{label}]{{"), _raw("}")
        return {"t": "Span", "c": [["", [], []], [start, *self.inlines(text), end]]}

    def image(self, attributes, alt, target):
        """A picture beside the answer, as a PNG."""
        from urllib.parse import unquote

        from PIL import Image

        source = unquote(target[0])
        answers._picture(self.path, source, "".join(node.get("c", " ") for node in alt))
        try:
            with Image.open(self.path.parent / source) as picture:
                picture = picture.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            raise InputError(f"{self.path}: --latex can't show {source}: save it as PNG or JPEG") from None
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


def convert_answers(record, folder, figures):
    """{question id: LaTeX} of all answers; pictures in them go to the folder `figures`."""
    import pypandoc

    tree, blocks = _Answers(figures), []
    texts = answers.answer_texts(record, folder)
    for _, text in texts.values():
        tree.labels |= {
            t.info.removeprefix("eq-") for t in answers._tokens(text) if t.type == "math_block_label"
        }
    mark = f"% {uuid.uuid4()} "  # parts the answers in what pandoc returns
    for key, (path, text) in texts.items():
        page = _markdown(path).render(text, {"path": path})
        parsed = json.loads(
            pypandoc.convert_text(page, "json", format="html-auto_identifiers", extra_args=["--sandbox"])
        )
        tree.path = path
        blocks += [_raw(f"{mark}{key}", block=True), *tree.blocks(parsed["blocks"])]
    parsed["blocks"] = blocks
    latex = pypandoc.convert_text(
        json.dumps(parsed), "latex", format="json", extra_args=["--sandbox", "--wrap=auto", "--columns=100"]
    )
    pieces = re.split(re.escape(mark) + r"(\w+)\n", latex)
    return {key: Latex(piece.strip()) for key, piece in zip(pieces[1::2], pieces[2::2])}


# Fonts


def _write_fonts(folder, text):
    """The faces that `text` needs as TrueType or OpenType files, whole, so that the text can be edited.

    They travel with the .tex, so that it looks the same with every TeX Live, and like the other report.
    -> what the preamble has to know: the files to look for letters in, and the scripts.
    """
    from fontTools.ttLib import TTFont

    folder.mkdir()
    styles = {(400, "normal"): "Regular", (700, "normal"): "Bold", (600, "normal"): "Semibold"}
    styles |= {(400, "italic"): "Italic", (700, "italic"): "BoldItalic"}
    always, needed = fonts._families()
    chosen, _ = fonts.choose_families(text)
    maths_and_lines = [f for f in needed if f[0] in ("STIX Two Math", fonts.TERMINAL) and f not in chosen]
    found = {"serif": [], "bold": [], "mono": []}
    for family, files in [*chosen, *maths_and_lines]:
        for weight, style, source in files:
            font = TTFont(source, recalcTimestamp=False)
            font.flavor = None
            kind = "otf" if "CFF " in font else "ttf"
            name = f"{family.replace(' ', '')}-{styles[weight, style]}.{kind}"
            font.save(folder / name)
            if (family, files) not in always:
                spec = f"[fonts/{name}]:mode=node;" + "script=arab;" * ("Arabic" in family)
                found["bold" if weight == 700 else "serif"].append(spec)
                if family == fonts.TERMINAL:  # it draws the lines in step with the mono's letters
                    found["mono"].append(spec)
    found["bold"] += found["serif"]
    found["mono"] += found["serif"]
    for license in sorted(fonts.FOLDER.glob("LICENSE*")):
        words = license.stem.split("-")[1:3]
        if list(folder.glob("".join(words) + "*")):
            shutil.copyfile(license, folder / license.name)
    return {name: Latex(", ".join(f'"{spec}"' for spec in specs)) for name, specs in found.items()} | {
        "arabic": bool(re.search(r"[\u0600-\u08ff\ufb50-\ufefe]", text)),
        "hebrew": bool(re.search(r"[\u0590-\u05ff]", text)),
        "chinese": bool(re.search(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text)),
    }


# The whole folder


def _environment():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(render.TEMPLATES),
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
    environment.filters.update(answers.FILTERS, terminal=terminal, breakable=breakable, latex=Latex)
    return environment


def _write_figures(folder, record, run):
    """The figures as PDF, the pictures as they are. -> {kind: entries with the name of their picture}"""
    import matplotlib
    from matplotlib import pyplot

    # matplotlib can't embed the CFF font for Chinese as Type 42, which keeps text selectable.
    kind = 3 if any(letter > "\u2e7f" for letter in render._record_text(record)) else 42
    for name, figure in render.draw_figures(record, run).items():
        with matplotlib.rc_context({"pdf.fonttype": kind}):
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        pyplot.close(figure)
    pictures = {}
    for kind in ("examples", "mistakes", "train_samples", "test_samples"):
        pictures[kind] = []
        for number, entry in enumerate(record[kind], 1):
            name = f"{kind.replace('_', '-')}-{number:03}{Path(entry['picture']).suffix}"
            shutil.copyfile(run / entry["picture"], folder / name)
            pictures[kind].append(entry | {"name": f"figures/{name}"})
    return pictures


def _fill(folder, record, run, answers_folder):
    """Write everything but the compiled PDF into the empty `folder`. -> name of the .tex"""
    (folder / "figures").mkdir()
    pictures = _write_figures(folder / "figures", record, run)
    name = f"{record['student']['id']}_Lab8_Homework"
    environment = _environment()
    log = (run / "training.log").read_text(encoding="utf-8")
    content = {
        **answers.lookups(record),
        **pictures,
        "record": record,
        "arrays": render._arrays(run / record["arrays"]),
        "settings": render.setting_columns(record["recipe"]["values"]),
        "log": render.log_pieces(log, record["training"]["history"]),
        "questions": answers.QUESTIONS,
        "answers": convert_answers(record, answers_folder, folder / "figures"),
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
        shutil.copyfile(render.TEMPLATES / file, folder / file)
    return name


def _compile(folder, name, date):
    """Compile the .tex with latexmk, if it is installed. -> what to tell the user, or None."""
    if not shutil.which("latexmk"):
        return "latexmk is not installed: the .tex was not compiled"
    kept = {path.name for path in folder.iterdir()}
    cache = tempfile.TemporaryDirectory(prefix="report-fonts-")
    environment = os.environ | {
        "TEXMFCACHE": cache.name,  # two compilers at once would rewrite each other's fonts
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
    finally:
        cache.cleanup()
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
        return f"no font has {' '.join(missing[:8])}: look at latex/{name}.pdf, it is missing there"
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
        message = _compile(new, name, render.document_date(record))
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
