"""A formula in words: the alternative text that a screen reader speaks."""

import re
import unicodedata
from xml.etree import ElementTree

OPERATORS = {
    "=": "equals", "+": "plus", "-": "minus", "−": "minus", "×": "times", "·": "times", "/": "over",
    "<": "is less than", ">": "is greater than", "≤": "is at most", "≥": "is at least", "≈": "is about",
    "≠": "is not equal to", "∈": "in", "→": "to", "∑": "sum", "∏": "product", "∥": "norm", "|": "bar",
    "…": "and so on", "⋯": "and so on", "∞": "infinity", "∂": "partial", "∇": "gradient of",
    "±": "plus or minus",
    "⊤": "transpose", "′": "prime", "'": "prime", "*": "star", "∼": "is distributed as",
    "(": "open parenthesis", ")": "close parenthesis", "[": "open bracket", "]": "close bracket",
    "{": "open brace", "}": "close brace",
}  # fmt: skip
SCRIPTS = {"⊤": "transpose", "2": "squared", "3": "cubed", "′": "prime", "'": "prime", "*": "star"}
STYLES = {"double-struck": "blackboard ", "bold": "bold ", "script capital": "script "}
# By the names of MathML's elements; the parts of an element are numbered from 0.
FORMS = {
    "msub": "{0} sub {1}", "munder": "{0} sub {1}", "msup": "{0} {1}", "mover": "{0} {1}",
    "msubsup": "{0} sub {1} {2}", "munderover": "{0} sub {1} {2}",
    "mfrac": "fraction {0} over {1} end fraction", "mroot": "root {1} of {0} end root",
}  # fmt: skip


def _letter(text):
    """One symbol in words: "ℓ" -> "l", "α" -> "alpha", "𝐳" -> "bold z"."""
    if len(text) != 1 or text.isascii():
        return text
    plain, name = unicodedata.normalize("NFKC", text), unicodedata.name(text, text).lower()
    if plain.isascii():
        return next((words for style, words in STYLES.items() if style in name), "") + plain
    name = unicodedata.name(plain[0], text).lower()
    return re.sub(r"greek (?:small|(capital )) *letter ", r"\1", name)


def _words(node):
    kind = node.tag.rpartition("}")[2]
    parts = [_words(child) for child in node]
    text = (node.text or "").strip()
    if kind in ("msup", "mover", "msubsup", "munderover"):
        raised = "".join(node[-1].itertext()).strip()
        parts[-1] = SCRIPTS.get(raised, f"superscript {parts[-1]}")
    if kind in FORMS:
        return FORMS[kind].format(*parts)
    if kind == "msqrt":
        return f"square root of {' '.join(parts)} end root"
    if kind in ("mo", "mi"):
        return OPERATORS.get(text) or _letter(text)
    if kind in ("mn", "mtext", "ms"):
        return text
    return ("" if _is_word(node) else " ").join(part for part in parts if part)


def _is_word(node):
    """Whether a row spells a name: upright letters (MSA, softmax), or letters of an index (pos, qkv)."""
    if len(node) < 2 or any(child.tag.rpartition("}")[2] != "mi" for child in node):
        return False
    letters = "".join(node.itertext())
    upright = all(child.get("mathvariant") == "normal" for child in node)
    return letters.isascii() and (upright or (len(letters) > 2 and letters.islower()))


def spoken(latex):
    """LaTeX in words: r"\\frac{a}{b^2}" -> "fraction a over b squared end fraction"."""
    import latex2mathml.converter

    tree = ElementTree.fromstring(latex2mathml.converter.convert(latex))
    words = re.sub(r"\s+", " ", _words(tree)).strip()
    return re.sub(r" (?=[,;])", "", words) or latex
