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
    "⊤": "transpose", ";": ";", ",": ",", "′": "prime", "'": "prime", "*": "star", "∼": "is distributed as",
    "(": "open parenthesis", ")": "close parenthesis", "[": "open bracket", "]": "close bracket",
    "{": "open brace", "}": "close brace",
}  # fmt: skip
SCRIPTS = {"⊤": "transpose", "2": "squared", "3": "cubed", "′": "prime", "'": "prime", "*": "star"}
LETTERS = {"double-struck": "blackboard ", "bold": "bold ", "script": "script "}


def _letter(text, variant=""):
    """One symbol in words: "ℓ" -> "l", "α" -> "alpha", bold z -> "bold z"."""
    if len(text) != 1 or text.isascii():
        return LETTERS.get(variant, "") + text if len(text) == 1 else text
    plain = unicodedata.normalize("NFKC", text)
    name = unicodedata.name(text, "").lower()
    style = next((word for key, word in LETTERS.items() if key.split("-")[0] in name), "")
    if "script small" in name:  # the paper's ell is an ordinary letter
        style = ""
    if len(plain) == 1 and plain.isascii():
        return style + plain
    greek = re.fullmatch(r"greek (small|capital) letter (\w+)", unicodedata.name(plain[:1], "").lower())
    if greek:
        return ("capital " if greek[1] == "capital" else "") + greek[2]
    return name or text


def _words(node):
    kind = node.tag.rpartition("}")[2]
    parts = [_words(child) for child in node]
    text = (node.text or "").strip()
    if kind in ("msub", "msup", "msubsup", "munder", "mover", "munderover"):
        words = parts[0]
        if kind in ("msub", "msubsup", "munder", "munderover") and parts[1]:
            words += f" sub {parts[1]}"
        if kind in ("msup", "msubsup", "mover", "munderover") and parts[-1]:
            raised = SCRIPTS.get("".join(node[-1].itertext()).strip())
            words += f" {raised}" if raised else f" superscript {parts[-1]}"
        return words
    if kind == "mfrac":
        return f"fraction {parts[0]} over {parts[1]} end fraction"
    if kind == "msqrt":
        return f"square root of {' '.join(parts)} end root"
    if kind == "mroot":
        return f"root {parts[1]} of {parts[0]} end root"
    if kind == "mo":
        return OPERATORS.get(text) or " ".join(OPERATORS.get(c) or _letter(c) for c in text)
    if kind == "mi":
        return _letter(text, node.get("mathvariant", ""))
    if kind in ("mn", "mtext", "ms"):
        return text
    if _is_word(node):
        return "".join(parts)
    return " ".join(part for part in parts if part)


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
