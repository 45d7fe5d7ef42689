"""The written answers: Markdown with LaTeX maths and looked-up figures -> HTML.

An answer is a file q06.md ... q10d.md. `{{ ... }}` in it looks a figure up in the run record, and
`{{ code("Attention.forward") }}` shows lines of the live source of vit.py. Both the project's answers
in templates/answers/ and a student's own are rendered in Jinja's sandbox, with raw HTML off.
"""

import base64
import html
import io
import re
import warnings
from functools import lru_cache
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from recipe import InputError, Recipe
from report import source

ANSWERS = source.ROOT / "templates" / "answers"
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
}

NEAR = 0.05  # attention distances that differ by less than this share of the image's side count as alike
PICTURE_MB = 20  # at most; and as many pixels:
PICTURE_PIXELS = 50_000_000

# id, number, the assignment's words, graded points in %
QUESTIONS = [
    (
        "q06",
        "6",
        "Briefly explain the role of patch embedding and positional encoding in ViT.",
        "5",
    ),
    (
        "q07",
        "7",
        "Describe which hyperparameters you tuned, why you chose them, and how they affected your "
        "final accuracy.",
        "5",
    ),
    (
        "q08",
        "8",
        "Compare ViT and CNN for image classification: what are the main differences, and when might "
        "one be preferred over the other using the provided dataset?",
        "5",
    ),
    (
        "q09",
        "9",
        "Report the final achieved test accuracy; explain whether you reached the >60% baseline.",
        "5",
    ),
    (
        "q10a",
        "10a",
        "How does the Vision Transformer process input images from start to finish?",
        "10, a–d",
    ),
    (
        "q10b",
        "10b",
        "How are the image patches divided and transformed into input sequences?",
        "",
    ),
    (
        "q10c",
        "10c",
        "How does the multi-head self-attention mechanism operate within the Transformer encoder?",
        "",
    ),
    (
        "q10d",
        "10d",
        "How does the model use the [CLS] token (or final output) to produce the final image classification?",
        "",
    ),
]


NETWORKS = {"vit": "ViT", "cnn": "CNN", "resnet18": "ResNet-18"}  # compare.py's, as the report calls them


class Markdown(str):
    """Text that is Markdown already; all other text is escaped when an answer looks it up."""


def _plain(value):
    """Looked-up text as Markdown that shows it letter by letter: class names may hold * or <."""
    if isinstance(value, str) and not isinstance(value, Markdown):
        return re.sub(r"([\\`*_{}\[\]()#+.!|<>~$^=-])", r"\\\1", value)
    return value


def percent(share, digits=1):
    """0.9722 -> "97.2 %", never rounded up to 100."""
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return Markdown(f"{text}\u202f%")


def whole(number):
    return Markdown(f"{number:,}")


def points(difference, digits=1):
    """0.0312 -> "+3.1": a difference of shares in percentage points, with a true minus sign."""
    number = round(100 * difference, digits) + 0.0  # no minus before a zero
    return Markdown(f"{number:+.{digits}f}".replace("-", "−") if number else f"{number:.{digits}f}")


def setting(value):
    """A hyperparameter's value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else value


CHANGED = {  # hyperparameters in words, where the name with spaces is none
    "dim": "token width",
    "dim_head": "head width",
    "mlp_dim": "MLP width",
    "pos_embedding": "position embedding",
    "crop": "random shift",
    "flip": "flips",
    "transpose": "transposition",
    "standardize": "standardisation",
    "muon_learning_rate": "Muon’s rate",
}


def changed_to(row):
    """A diary's row in words: "depth 9", "no mixup"."""
    name, value = row["name"], row["value"]
    words = CHANGED.get(name, name.replace("_", " "))
    if name == "muon_learning_rate" and value == 0:
        return "AdamW, no Muon"
    if name == "pool":
        return "class token" if value == "cls" else "mean of tokens"
    if value is False or value == "off" or (value == 0 and name not in ("learning_rate", "warmup_epochs")):
        return f"no {words}"
    return words if value is True else f"{words} {setting(value)}"


def effect(row):
    """A diary's row as the end of a sentence: "+0.3 points (95 % interval −1.3 to +1.9)"."""
    shown = f"{points(row['difference'])} points"
    if row["low"] is not None:
        shown += f" (95 % interval {points(row['low'])} to {points(row['high'])})"
    return Markdown(shown + (", which is within noise" if row["within_noise"] else ""))


def pixels(number):
    """103.74 -> "104", 9.31 -> "9.3"."""
    return Markdown(f"{number:.0f}" if number >= 20 else f"{number:.1f}")


FILTERS = {
    "percent": percent,
    "whole": whole,
    "points": points,
    "effect": effect,
    "pixels": pixels,
    "setting": setting,
}


def code(name, start=None, end=None):
    """An excerpt of vit.py as a fenced block that names its lines."""
    text, first, last = source.excerpt("vit.py", name, start, end)
    lines = f"line {first}" if first == last else f"lines {first}–{last}"
    return Markdown(f"\n```python vit.py, {lines}\n{text}\n```\n")


def _environment():
    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        code=code,
        setting=setting,
        changed_to=changed_to,
        networks=NETWORKS,
        min=min,
        max=max,
        round=round,
        sum=sum,
    )
    environment.filters.update(FILTERS)
    return environment


def source_of(finding, record):
    """Where a study's figures come from, to stand in a sentence: "..., recorded on 2026-11-25 (...)"."""
    if finding is None:
        return None
    machine, data = finding["machine"], finding["data"]
    where = f"{finding['date'][:10]}, {machine['gpu'] or machine['processor']}, {machine['cores']} cores"
    same = data["fingerprint"] == record["data"]["fingerprint"]
    images = "this run’s images" if same else f"other images ({data['name']})"
    if finding["fresh"]:
        return f"measured on {images} for this report; {where}"
    return f"recorded on {images}, not measured in this run; {where}; studies/{finding['file']}"


def _sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def captions_of(found, record):
    """The captions of the figures that show studies, None where there is no study."""
    diary, comparison = found["diary"], found["comparison"]
    captions = {"diary_caption": None, "shares_caption": None}
    if diary:
        start = diary["start"]
        captions["diary_caption"] = (
            "The ablation diary: one value changed at a time, and what it does to the validation accuracy of "
            f"{percent(start['accuracy'])} that the recipe “{diary['name']}” has after "
            f"{diary['recipe']['epochs']} epochs, in percentage points (mean and 95 % interval of "
            f"{start['runs']} paired runs). Hollow: the interval holds zero. Each panel has its own scale. "
            f"{_sentence(source_of(diary, record))}"
        )
    if comparison:
        captions["shares_caption"] = (
            f"Test accuracy on all and on fewer training images: mean and standard deviation over seeds, "
            f"{comparison['recipe']['epochs']} epochs. {_sentence(source_of(comparison, record))}"
        )
    return captions


def lookups(record):
    """The names an answer can look up: the record's parts, and what follows from them by arithmetic."""
    recipe = SimpleNamespace(**record["recipe"]["values"])
    results, classes = record["results"], record["data"]["classes"]
    counts = record["data"]["counts"]
    confusions = sorted(
        (
            {"true": classes[i], "predicted": classes[j], "count": count}
            for i, row in enumerate(results["confusion_matrix"])
            for j, count in enumerate(row)
            if i != j and count
        ),
        key=lambda c: -c["count"],
    )
    bins = results["calibration"]["bins"]
    confidence = sum(b["images"] * b["confidence"] for b in bins if b["images"]) / results["total"]
    found = record["findings"]
    diary = found["diary"]
    effects = {}
    for row in diary["rows"] if diary else ():
        if row["difference"] is not None:
            effects.setdefault(row["name"], []).append(row)
    attention, near = record["attention"], NEAR * recipe.image_size
    distances = [block["mean"] for block in attention["blocks"]]
    change = distances[-1] - distances[0]

    def recall(name):
        return results["per_class"][name]["recall"]

    by_recall = sorted(results["per_class"], key=recall)
    return {
        "recipe": recipe,
        "data": record["data"],
        "model": record["model"],
        "training": record["training"],
        "history": record["training"]["history"],
        "machine": record["machine"],
        "results": results,
        "demonstration": record["data"]["demonstration"],
        "classes": classes,
        "train_images": sum(counts["train"].values()),
        "test_images": sum(counts["test"].values()),
        "patches": (recipe.image_size // recipe.patch_size) ** 2,
        "patch_dim": recipe.channels * recipe.patch_size**2,
        # Test images are scored in so many views: the symmetries that training used, or as they are.
        "views": (4 if recipe.flip else 1) * (2 if recipe.transpose else 1) if recipe.test_views else 1,
        "inner_dim": recipe.heads * recipe.dim_head,
        "attention": attention,
        "distance_trend": "stays" if abs(change) < near else "grows" if change > 0 else "falls",
        "looks_nearer": min(distances) < attention["even"] - near,
        "confusions": confusions,
        "mean_confidence": confidence,
        # Studies, each None where there is none; where they come from; the diary's rows by name.
        **found,
        **{f"{kind}_source": source_of(finding, record) for kind, finding in found.items()},
        "effects": effects,
        "diary_differs": [
            name
            for name, value in (diary["recipe"].items() if diary else ())
            if name not in ("warmup_epochs", "split_seed") and getattr(recipe, name) != value
        ],
        **captions_of(found, record),
        "second_right": sum(
            sorted(p["confidences"])[-2] == p["confidences"][classes.index(p["true"])]
            for p in results["predictions"]
            if p["true"] != p["predicted"]
        ),
        "harder": " and ".join(
            ["augmented"] * bool(recipe.flip or recipe.crop or recipe.brightness or recipe.contrast)
            + ["blended"] * bool(recipe.mixup)
        ),
        "standard_recipe": record["recipe"].get("name") in ("default", "best"),
        # None where two classes share the lowest recall.
        "hardest": by_recall[0] if len(set(map(recall, by_recall[:2]))) == 2 else None,
    }


@lru_cache
def formula(latex, display):
    """LaTeX -> an <img> of vector outlines on the text's baseline, its words as alternative text."""
    from report.speech import spoken

    size = 100.0
    with warnings.catch_warnings():  # of how it finds its own font
        warnings.simplefilter("ignore", DeprecationWarning)
        import ziamath

        drawn = ziamath.Latex(latex, size=size, inline=not display)
    # The drawing's own box: its height in em, and how far it reaches below the baseline.
    svg = drawn.svg()
    _, top, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<img class="formula" alt="{html.escape(spoken(latex))}" '
        f'data-latex="{html.escape(latex.strip())}" '
        f'src="data:image/svg+xml;base64,{data}" style="width:{width / size:.3f}em;'
        f'height:{height / size:.3f}em;vertical-align:{-(top + height) / size:.3f}em">'
    )


def _math(content, options):
    return formula(content.strip(), options["display_mode"])


def _label(label):
    return f'<span class="equation-number">({html.escape(label.removeprefix("eq-"))})</span>'


def _picture(path, source, alt):
    """A picture beside an answer as a data URL. InputError if it is not there, can't be shown, or has no
    description."""
    where = path.name
    if not alt.strip():
        raise InputError(f"{where}: the picture {source} needs a description: ![what it shows]({source})")
    shown = "".join(c if c.isprintable() else "?" for c in source[:77]) + "..." * (len(source) > 77)
    try:
        file = (path.parent / source).resolve()
        kind = PICTURES.get(file.suffix.lower())
        there = file.is_relative_to(path.parent.resolve()) and file.is_file() and kind
    except (OSError, ValueError):  # a name too long, or with a null byte
        there = False
    if not there:
        raise InputError(
            f"{where}: can't show the picture {shown}: put a {', '.join(PICTURES)} file into {path.parent}"
        )
    try:
        content = file.read_bytes()
        fault = _fault_of(content, kind)
    except OSError as error:
        fault = error.strerror
    if fault:
        raise InputError(f"{where}: can't show the picture {shown}: {fault}")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _fault_of(content, kind):
    """Why the bytes of a picture can't be shown, or None. An SVG may refer to nothing outside itself."""
    if len(content) > PICTURE_MB * 1e6:
        return f"it has {len(content) / 1e6:.0f} MB, at most {PICTURE_MB} are allowed"
    if kind == "image/svg+xml":
        if b"<!ENTITY" in content:
            return "it defines entities: save it as PNG"
        try:
            root = ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError):  # no XML, or in an unknown encoding
            return "it is no SVG"
        for element in root.iter():
            tag = str(element.tag).rpartition("}")[2]
            values = [value for name, value in element.items() if name.rpartition("}")[2] == "href"]
            values = [] if tag == "a" else values  # only to be clicked on
            styles = " ".join([*element.attrib.values(), (element.text or "") * (tag == "style")])
            values += re.findall(r"(?:url\(|@import)[\s'\"]*([^\s'\")]*)", styles)
            if other := next((v for v in values if not v.strip().startswith(("#", "data:"))), None):
                return f"it takes in {other[:80]!a}: save it as PNG, or with everything in it"
        return None
    from PIL import Image

    try:
        with warnings.catch_warnings():  # of a size that is refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                if picture.width * picture.height > PICTURE_PIXELS:
                    return f"{picture.width} x {picture.height} pixels are too many: make it smaller"
                picture.load()
    except Image.DecompressionBombError:
        return "it has too many pixels: make it smaller"
    except Exception as error:  # a broken picture can raise nearly anything out of a decoder
        return f"it is damaged or no picture ({type(error).__name__})"
    return None


def _local_link(path, url):
    """InputError for a link to a file, which leads nowhere on a reader's machine."""
    if url.strip().lower().startswith("file:"):
        raise InputError(f"{path.name}: {url[:80]} is a file of this machine: no reader can follow that link")


def _link(self, tokens, index, options, env):
    _local_link(env["path"], tokens[index].attrs["href"])
    return self.renderToken(tokens, index, options, env)


def _image(self, tokens, index, options, env):
    token = tokens[index]
    url = _picture(env["path"], unquote(token.attrs["src"]), token.content)
    return f'<img alt="{html.escape(token.content)}" src="{url}">'


def _fence(self, tokens, index, options, env):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_by_name
    from pygments.util import ClassNotFound

    token = tokens[index]
    language, _, title = token.info.strip().partition(" ")
    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        lexer = TextLexer()
    body = highlight(token.content, lexer, HtmlFormatter(nowrap=True))
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    return f'<figure class="code">{caption}<pre><code>{body}</code></pre></figure>\n'


def _markdown():
    md = MarkdownIt("commonmark", {"html": False, "typographer": True})
    md.enable(["table", "strikethrough", "replacements", "smartquotes"])
    md.use(
        dollarmath_plugin,
        renderer=_math,
        label_normalizer=lambda label: "eq-" + re.sub(r"[^\w-]", "-", label),
        label_renderer=_label,
        double_inline=True,
    )
    md.add_render_rule("fence", _fence)
    md.add_render_rule("image", _image)
    md.add_render_rule("link_open", _link)
    # These would stay as they are written; the rules above refuse them.
    known = md.validateLink
    md.validateLink = lambda url: known(url) or url.lower().startswith("file:")
    return md


def _read(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None


def check_answers(folder):
    """Check a student's answers before the long work. InputError says which file, where and what."""
    if folder is None:
        return
    known = [f"{q[0]}.md" for q in QUESTIONS]
    if not folder.is_dir():
        raise InputError(f"--answers {folder}: there is no such folder")
    files = sorted(folder.glob("*.md"))
    if not files:
        raise InputError(f"--answers {folder}: no answers in it; they are called {', '.join(known)}")
    environment = _environment()
    names = set(environment.globals) | set(_sample_names())
    for path in files:
        if path.name not in known:
            raise InputError(f"{path}: no question has this name; they are {', '.join(known)}")
        if not path.is_file():
            raise InputError(f"{path} is no file")
        text = _read(path)
        try:
            parsed = environment.parse(text)
            unknown = jinja2.meta.find_undeclared_variables(parsed) - names
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{path}, line {error.lineno}: {error.message}") from None
        if unknown:
            raise InputError(
                f"{path}: {{{{ {sorted(unknown)[0]} }}}} can't be looked up; there are "
                f"{', '.join(sorted(_sample_names()))}"
            )
        if list(jinja2.meta.find_referenced_templates(parsed)):
            raise InputError(f"{path}: an answer can't take in other files")
        for token in _tokens(text):
            if token.type == "link_open":
                _local_link(path, token.attrs["href"])
            if token.type == "image" and "{{" not in token.attrs["src"]:
                _picture(path, unquote(token.attrs["src"]), token.content)
        for latex, display in _formulas(text):
            _set_formula(path, latex, display)


def _sample_names():
    """What `lookups` offers, without a record."""
    counts = {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    results = {"confusion_matrix": [], "per_class": {"a": {"recall": 1}}, "total": 1}
    results |= {"calibration": {"bins": []}, "predictions": []}
    data = {"classes": [], "counts": counts, "demonstration": False}
    recipe = {"values": Recipe().values()}
    training = {"history": []}
    parts = {"model": {}, "machine": {}, "attention": {"even": 1, "blocks": [{"mean": 1}]}}
    parts["findings"] = dict.fromkeys(("search", "diary", "comparison"))
    return lookups(dict(parts, recipe=recipe, results=results, data=data, training=training))


def _tokens(text):
    tokens = _markdown().parse(text)
    return [*tokens, *(child for token in tokens for child in token.children or [])]


def _formulas(text):
    for token in _tokens(text):
        if token.type.startswith("math") and "{{" not in token.content and "{%" not in token.content:
            yield token.content.strip(), token.type.startswith("math_block")


def _set_formula(path, latex, display):
    try:
        formula(latex, display)
    except Exception as error:  # ziamath raises many kinds for what it can't set
        raise InputError(f"{path}: can't set the formula {latex!r}: {error}") from None


def answer_texts(record, folder=None):
    """{question id: (path, Markdown)} of all answers, looked up; a file in `folder` replaces our own."""
    environment, known = _environment(), lookups(record)
    texts = {}
    for key, *_ in QUESTIONS:
        path = ANSWERS / f"{key}.md"
        if folder and (folder / path.name).is_file():
            path = folder / path.name
        try:
            text = environment.from_string(_read(path)).render(known)
        except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
            line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
            raise InputError(f"{path}{line}: {error}") from None
        for latex, display in _formulas(text):
            _set_formula(path, latex, display)
        texts[key] = (path, text)
    return texts


def render_answers(record, folder=None):
    """{question id: HTML} of all answers; a file in `folder` replaces the project's own."""
    markdown, texts = _markdown(), answer_texts(record, folder)
    return {key: markdown.render(text, {"path": path}) for key, (path, text) in texts.items()}
