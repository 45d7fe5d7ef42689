"""The report's typefaces: those that its text needs, as CSS with the fonts in it and for matplotlib.

One text face (STIX Two Text), one mono (Source Code Pro). Other scripts and rare signs come from further
fonts, shipped in templates/fonts/ or brought by our dependencies, so that a page looks the same everywhere.
"""

import io
import logging
import re
import shutil
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from report.page import TEMPLATES, data_url

FOLDER = TEMPLATES / "fonts"
MONO, TERMINAL, MATHS = "Source Code Pro", "DejaVu Sans Mono", "STIX Two Math"
# Names of our own, where we have no bold: a system that has the same font would put its bold in.
SIGNS, ARABIC, CJK = "Report Signs", "Report Arabic", "Report CJK"

# Set before it is imported: it tells that it lists the system's fonts, and that some faces have no bold.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

ALWAYS = ("STIX Two Text", MONO, TERMINAL, SIGNS)  # text, code, the lines of the model summary, ticks
REGULAR, BOLD = (400, "normal"), (700, "normal")
LARGE = 60_000  # bytes: such a font is cut to the letters that are used


def _shipped(family, stem, *styles):
    return family, [(weight, style, FOLDER / f"{stem}-{weight}-{style}.woff2") for weight, style in styles]


@lru_cache
def families():
    """[(family, [(weight, style, file)])], in the order they are tried."""
    import matplotlib

    plots = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # Found, not imported: that warns of how it finds its own font.
    maths = Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    return [
        _shipped("STIX Two Text", "stix-two-text-latin", REGULAR, BOLD, (400, "italic"), (700, "italic")),
        _shipped(MONO, "source-code-pro-latin", REGULAR, (600, "normal")),
        _shipped("STIX Two Text Extended", "stix-two-text-latin-ext", REGULAR, BOLD),
        _shipped("STIX Two Text Vietnamese", "stix-two-text-vietnamese", REGULAR, BOLD),
        _shipped("STIX Two Text Greek", "stix-two-text-greek", REGULAR, BOLD),
        _shipped("STIX Two Text Cyrillic", "stix-two-text-cyrillic", REGULAR, BOLD),
        (MATHS, [(*REGULAR, maths)]),
        _shipped(ARABIC, "noto-naskh-arabic-arabic", REGULAR),
        (TERMINAL, [(*REGULAR, plots / "DejaVuSansMono.ttf")]),
        (SIGNS, [(*REGULAR, plots / "DejaVuSans.ttf")]),
        _shipped(CJK, "noto-serif-cjk", REGULAR),
    ]


@lru_cache
def _covers(path):
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap())


def _letters(text):
    """The code points that need a glyph: no white space, controls or joiners."""
    unset = ("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Cs")
    return frozenset(ord(c) for c in set(text) if unicodedata.category(c) not in unset)


def choose_families(text):
    """(families that `text` needs, code points that none of them has)."""
    chosen, left = [], _letters(text)
    for family, files in families():
        found = left & _covers(files[0][2])
        if found or family in ALWAYS:
            chosen.append((family, files))
        if family not in (MONO, TERMINAL):  # they set no text
            left -= found
    return chosen, left


def missing_letters(text):
    """The characters of `text` that no font of ours has: shown in a font of the system, or as a box."""
    return "".join(sorted(map(chr, choose_families(text)[1])))


@lru_cache
def _woff2(path, letters):
    """The bytes of a font as WOFF2, cut to `letters` where it is large."""
    from fontTools import subset

    if path.stat().st_size < LARGE:
        return path.read_bytes()
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports step by step
    options = subset.Options(
        flavor="woff2", hinting=False, notdef_outline=True, layout_features=["*"], name_IDs=["*"]
    )
    with subset.load_font(path, options) as font, io.BytesIO() as file:
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes={*letters, 0x20, 0xA0})
        subsetter.subset(font)
        subset.save_font(font, file, options)
        return file.getvalue()


def _save(path, target, family):
    """Write a font without compression, under this family's name. -> its path, with .ttf or .otf added"""
    from fontTools.ttLib import TTFont

    with TTFont(path, recalcTimestamp=False) as font:
        font.flavor = None
        for name in font["name"].names:  # the slices of one family must not pass for each other
            if name.nameID in (1, 16):
                name.string = family
        target = target.with_name(f"{target.name}.{'otf' if 'CFF ' in font else 'ttf'}")
        font.save(target)
    return target


def font_css(text):
    """@font-face rules with the fonts in them, and the variables --text and --mono."""
    text += "\u2010"  # the hyphen that WeasyPrint breaks words with
    chosen, rules = choose_families(text)[0], []
    for family, files in chosen:
        for weight, style, path in files:
            url = data_url(_woff2(path, _letters(text)), "font/woff2")
            about = f'font-family: "{family}"; font-weight: {weight}; font-style: {style};'
            rules.append(f'@font-face {{ {about} src: url("{url}") format("woff2"); }}')
    names = [f'"{family}"' for family, _ in chosen if family not in (MONO, TERMINAL)]
    mono = ", ".join([f'"{MONO}"', f'"{TERMINAL}"', *names, "monospace"])
    rules.append(f":root {{ --text: {', '.join(names)}, serif; --mono: {mono}; }}")
    return "\n".join(rules)


def write_fonts(text, folder):
    """The text families of `text` as files that matplotlib reads: [(family, path)], in order."""
    return [
        (family, _save(path, Path(folder) / path.stem, family))
        for family, files in choose_families(text)[0]
        if family not in (MONO, TERMINAL, SIGNS)  # matplotlib has the last
        for _, _, path in files
    ]


def write_latex_fonts(folder, text):
    """The faces that `text` needs as TrueType or OpenType files, whole, so that the text can be edited.

    They travel with the .tex, so that it looks the same with every TeX Live, and like the other report.
    -> what the template has to know: the files to look for letters in, and the scripts.
    """
    folder.mkdir()
    chosen, _ = choose_families(text)
    chosen += [part for part in families() if part[0] == MATHS and part not in chosen]
    found = {"serif": [], "bold": [], "mono": []}
    for family, files in chosen:
        for weight, style, source in files:
            path = _save(source, folder / f"{family.replace(' ', '')}-{weight}-{style}", family)
            if family in ("STIX Two Text", MONO):
                continue
            spec = f'"[fonts/{path.name}]:mode=node;' + "script=arab;" * (family == ARABIC) + '"'
            found["bold" if weight == 700 else "serif"].append(spec)
            if family == TERMINAL:  # it draws the lines in step with the mono's letters
                found["mono"].append(spec)
    found["bold"] += found["serif"]
    found["mono"] += found["serif"]
    for license in FOLDER.glob("LICENSE*"):
        shutil.copyfile(license, folder / license.name)
    arabic = re.search("[\u0600-\u08ff\ufb50-\ufefe]", text)
    chinese = re.search("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text)
    scripts = ["arabic"] * bool(arabic) + ["chinese"] * bool(chinese)
    return {name: ", ".join(specs) for name, specs in found.items()} | {
        "scripts": "\n".join(rf"\babelprovide[import,onchar=ids]{{{name}}}" for name in scripts),
        "bidi": ",bidi=basic" * bool(arabic),
    }
