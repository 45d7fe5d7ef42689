"""Formulas of the answers: as a picture for the page, and checked for LaTeX.

On the page nothing in a formula can do harm: it is drawn. LaTeX would run what it is given, so it is given
only commands from a list, those of the setter that draws the page's.
"""

import html
import re
import warnings
from functools import lru_cache

from lab.errors import InputError
from report.page import data_url
from report.speech import spoken


def printable(text):
    """Without control characters, which TeX could read as commands and no reader would see."""
    text = "\n".join(text.splitlines())
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", "", text
    )


@lru_cache
def drawn(latex, display):
    """LaTeX as an HTML <img> of vector outlines on the text's baseline, its words as alternative text."""
    size = 100.0
    with warnings.catch_warnings():  # of how it finds its own font
        warnings.simplefilter("ignore", DeprecationWarning)
        import ziamath

        formula = ziamath.Latex(latex, size=size, inline=not display)
    # The drawing's own box: its height in em, and how far it reaches below the baseline.
    svg = formula.svg()
    _, top, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    return (
        f'<img class="formula" alt="{html.escape(spoken(latex))}" '
        f'data-latex="{html.escape(latex.strip())}" '
        f'src="{data_url(svg.encode(), "image/svg+xml")}" style="width:{width / size:.3f}em;'
        f'height:{height / size:.3f}em;vertical-align:{-(top + height) / size:.3f}em">'
    )


# Commands that define, read, write or jump, and those that are of no use in LaTeX.
NOT_IN_FORMULAS = {
    r"\DeclareMathOperator", r"\class", r"\def", r"\href", r"\math", r"\newcommand", r"\newenvironment",
    r"\style", r"\tag", r"\tag*", r"\unicode", r"\verb",
}  # fmt: skip
ENVIRONMENTS = {"array", "cases", "aligned", "alignedat", "gathered", "split"}
ENVIRONMENTS |= {f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V", "small")}


@lru_cache
def _known_commands():
    """The commands that the other report's setter of formulas knows, less those that do harm."""
    from latex2mathml import commands, symbols_parser

    tables = [value for name, value in vars(commands).items() if name.isupper()]
    named = re.findall(r"'\\(\\[A-Za-z]+\*?)'", repr([*tables, list(symbols_parser.SYMBOLS)]))
    return {*named, r"\mathbfit", r"\dagger", r"\mid", r"\colon"} - NOT_IN_FORMULAS


def for_latex(path, latex):
    """A formula of an answer for LaTeX. InputError that names the file and the command if it may not
    stand in a formula: only commands from a list of harmless ones pass."""

    def refuse(command):
        raise InputError(f"{path}: {command} cannot stand in a formula: {latex.strip()!r}")

    latex = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", printable(latex))  # a comment would hide what follows
    if "^^" in latex:
        refuse("^^")  # TeX's notation for any character, a backslash too
    for command in re.findall(r"\\(?:[A-Za-z]+|.|\n|$)", latex):
        if command[1:].isalpha() and command[1:].isascii():
            if command not in _known_commands() and command + "*" not in _known_commands():
                refuse(command)
        elif command[1:] not in {*"\\{}|,;:!#$%&_ >", "\n"}:  # \( and \[ would end the formula
            refuse(command)
    latex = re.sub(r"\\(begin|end)\s*\{(align|gather)\*?\}", r"\\\1{\2ed}", latex)
    for name in re.findall(r"\\(?:begin|end)\s*(\{[^}]*\}|.)", latex, re.DOTALL):
        if name[1:-1] not in ENVIRONMENTS:
            refuse(f"\\begin{name}")
    if re.search(r"(?<!\\)(?:\\\\)*[$#]", latex):
        refuse("$ or #")
    # The maths font has its own bold letters; it has no bold version.
    latex = re.sub(r"\\(?:bm|boldsymbol|pmb)(?![A-Za-z])", r"\\symbf", latex)
    return "\n".join(line.strip() for line in latex.splitlines() if line.strip())
