"""The written answers: Markdown with LaTeX maths and looked-up figures -> HTML.

An answer is a file q06.md ... q10d.md. `{{ ... }}` in it looks a figure up in the run record, and
`{{ code("Attention.forward") }}` shows lines of the submitted program. Both the project's answers in
templates/answers/ and a student's own are rendered in Jinja's sandbox, with raw HTML off: an answer is
text, it runs nothing and reads no file but the pictures beside it.
"""

import html
import io
import itertools
import re
import warnings
from functools import lru_cache
from operator import attrgetter
from urllib.parse import unquote

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from lab.bundle import file_name
from lab.errors import InputError, printable
from lab.recipe import Recipe
from report import formulas, rehearsal, source
from report.page import STRICT, TEMPLATES, data_url, shorten
from report.submission import assemble_submission, submission_of

ANSWERS = TEMPLATES / "answers"
FILLED = ".filled.md"  # how the file of an answer ends whose look-ups are done, as the PDF carries it
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
# Texts that are no Markdown: an answer in one would be passed over, and ours take its place.
NOT_READ = {".txt", ".markdown", ".docx", ".doc", ".odt", ".rtf", ".tex", ".html", ".pdf"}

LOOKS_UP = re.compile(r"\{[{%]")

NEAR = 0.05  # attention distances that differ by less than this share of the image's side count as alike
ANSWER_KB = 200  # of one file at most
TEXT_KB = 1000  # of what it becomes once looked up
FORMULA = 2000  # letters, and levels of brackets:
FORMULA_DEPTH = 20
PICTURE_MB = 20  # at most; and as many pixels:
PICTURE_PIXELS = 50_000_000

# id, number, the assignment's words
QUESTIONS = [
    ("q06", "6", "Briefly explain the role of patch embedding and positional encoding in ViT."),
    ("q07", "7", "Describe which hyperparameters you tuned, why you chose them, and how they affected your "
     "final accuracy."),
    ("q08", "8", "Compare ViT and CNN for image classification: what are the main differences, and when "
     "might one be preferred over the other using the provided dataset?"),
    ("q09", "9", "Report the final achieved test accuracy; explain whether you reached the >60% baseline — "
     "if not, describe what you tried and why it might have failed; if you did, explain how you achieved "
     "it."),
    ("q10a", "10a", "How does the Vision Transformer process input images from start to finish?"),
    ("q10b", "10b", "How are the image patches divided and transformed into input sequences?"),
    ("q10c", "10c", "How does the multi-head self-attention mechanism operate within the Transformer "
     "encoder?"),
    ("q10d", "10d", "How does the model use the [CLS] token (or final output) to produce the final image "
     "classification?"),
]  # fmt: skip

NETWORKS = {"vit": "ViT", "cnn": "CNN", "resnet18": "ResNet-18"}  # as the report calls those of a comparison


class Markdown(str):
    """Text that is Markdown already; all other text is escaped when an answer looks it up."""


def _plain(value):
    """Looked-up text as Markdown that shows it letter by letter: class names may hold * or <."""
    if isinstance(value, str) and not isinstance(value, Markdown):
        return re.sub(r"([\\`*_{}\[\]()#+.!|<>~$^=-])", r"\\\1", value)
    return value


def percent(share, digits=1):
    """0.9722 -> "97.2 %", never rounded up to 100."""
    shown = min(100 * share, 100 - 10**-digits) if share < 1 else 100 * share
    return Markdown(f"{shown:.{digits}f}\u202f%")


def whole(number):
    """1234567 -> "1,234,567"."""
    return Markdown(f"{number:,}")


def points(difference, digits=1):
    """0.0312 -> "+3.1": a difference of shares in percentage points, with a true minus sign.

    One that these digits would make zero has one more, as the sign of an interval's end matters.
    """
    if difference and not round(100 * difference, digits):
        digits += 1
    number = round(100 * difference, digits) + 0.0  # no minus before a zero
    return Markdown(f"{number:+.{digits}f}".replace("-", "−") if number else f"{number:.{digits}f}")


def setting(value):
    """A hyperparameter's value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else value


CHANGED = {  # hyperparameters in words, where their name with spaces is not yet one
    "dim": "token width", "dim_head": "head width", "mlp_dim": "MLP width",
    "mimetic": "mimetic start", "flip": "flips", "vertical_flip": "flips up-down",
    "pos_embedding": "position embedding", "crop": "random shift", "transpose": "transposition",
    "standardize": "standardisation", "muon_learning_rate": "Muon’s rate",
}  # fmt: skip


def pooled(pool):
    """What the head reads, in words."""
    words = {"cls": "the class token", "mean": "the mean of all tokens"}
    return words.get(pool, "the maximum of each feature over all tokens")


def changed_to(row):
    """A diary's row in words: "depth 9", "no mixup"."""
    name, value = row.name, row.value
    words = CHANGED.get(name, name.replace("_", " "))
    if name == "muon_learning_rate" and value == 0:
        return "AdamW, no Muon"
    if name == "pool":
        return pooled(value).removeprefix("the ")
    if value is False or value == "off" or (value == 0 and name not in ("learning_rate", "warmup_epochs")):
        return f"no {words}"
    return words if value is True else f"{words} {setting(value)}"


def effect(row):
    """A diary's row as the end of a sentence: "+0.3 points (95 % interval −1.3 to +1.9)"."""
    shown = f"{points(row.difference)} points"
    if row.low is not None:
        shown += f" (95 % interval {points(row.low)} to {points(row.high)})"
    return Markdown(shown + (", which is within noise" if row.within_noise else ""))


def pixels(number):
    """103.74 -> "104", 9.31 -> "9.3"."""
    return Markdown(f"{number:.0f}" if number >= 20 else f"{number:.1f}")


def sentence(text):
    """Words as a sentence of their own: a capital at the start, a full stop at the end."""
    return f"{text[0].upper()}{text[1:]}."


_FILTERS = percent, whole, points, effect, pixels, pooled, setting, sentence, shorten
FILTERS = {f.__name__: f for f in _FILTERS}


def excerpts(record):
    """The `code` of the answers: it shows lines of the submitted program and names its step and lines."""
    program, file = assemble_submission(submission_of(record)), file_name(record.student.id, "py")

    def code(name, start=None, end=None):
        try:
            text, first, last = source.excerpt(program, name, start, end)
        except LookupError as error:  # so for any record: before the training, too
            raise jinja2.TemplateRuntimeError(error.args[0]) from None
        lines = f"line {first}" if first == last else f"lines {first}–{last}"
        return Markdown(f"\n```python {file}, step {source.step_of(program, first)}, {lines}\n{text}\n```\n")

    return code


def _environment():
    environment = ImmutableSandboxedEnvironment(finalize=_plain, **STRICT)
    environment.globals.update(setting=setting, changed_to=changed_to, networks=NETWORKS)
    environment.filters.update(FILTERS)
    return environment


# What an answer can look up


def _source(finding, record):
    """Where a study's figures come from, to stand in a sentence; None where there is no study."""
    if finding is None:
        return None
    machine, data = finding.machine, finding.data
    where = f"{finding.date[:10]}, {machine.gpu or machine.processor}, {machine.cores} cores"
    same = data.fingerprint == record.data.fingerprint
    images = "this run’s images" if same else f"other images ({data.name})"
    if finding.fresh:
        return f"measured on {images} for this report; {where}"
    return f"recorded on {images}, not measured in this run; {where}; study/recorded/{finding.file}"


def _confusions(record):
    """The pairs of classes that were confused, most often first."""
    classes, matrix = record.data.classes, record.results.confusion_matrix
    pairs = [(i, j) for i, j in itertools.permutations(range(len(classes)), 2) if matrix[i][j]]
    pairs.sort(key=lambda pair: -matrix[pair[0]][pair[1]])
    return [{"true": classes[i], "predicted": classes[j], "count": matrix[i][j]} for i, j in pairs]


def _mean_confidence(record):
    results = record.results
    return sum(b.images * b.confidence for b in results.calibration.bins if b.images) / results.total


def _second_right(record):
    """Of how many wrong predictions the true class had the second-highest confidence."""
    second = [
        sorted(p.confidences)[-2] == p.confidences[record.data.classes.index(p.true)]
        for p in record.results.predictions
        if p.true != p.predicted
    ]
    return sum(second)


def _hardest(record):
    """The class of the lowest recall, None where two share it."""
    recall = {name: scores.recall for name, scores in record.results.per_class.items()}
    first, second = sorted(recall, key=recall.get)[:2]
    return first if recall[first] < recall[second] else None


def _distance_trend(record):
    """How the mean attention distance changes from the first block to the last."""
    blocks = record.shown.attention.blocks
    change = blocks[-1].mean - blocks[0].mean
    near = NEAR * record.recipe.values.image_size
    return "stays" if abs(change) < near else "grows" if change > 0 else "falls"


def _looks_nearer(record):
    """Whether a block looks clearly nearer than even attention would."""
    attention = record.shown.attention
    nearest = min(block.mean for block in attention.blocks)
    return nearest < attention.even - NEAR * record.recipe.values.image_size


def _effects(record):
    """{hyperparameter: the diary's rows about it that have a result}."""
    rows = record.findings.diary.rows if record.findings.diary else []
    return {row.name: [r for r in rows if r.name == row.name and r.difference is not None] for row in rows}


def _diary_differs(record):
    """The hyperparameters in which the run differs from the recipe that its diary is about."""
    if not record.findings.diary:
        return []
    ours = record.recipe.values.as_dict()
    # Of a value that an older diary does not know, the default says what was done then.
    theirs = Recipe().as_dict() | record.findings.diary.recipe
    # The warm-up is shortened with the epochs, and a diary makes splits and draws seeds of its own.
    own = ("warmup_epochs", "split_seed", "seed")
    return [name for name, value in theirs.items() if name not in own and ours.get(name) != value]


def _views(recipe):
    """In how many views a test image is scored (train.views_of)."""
    shifted = min(round(recipe.crop * recipe.image_size), recipe.patch_size // 4) > 0
    turned = (1 + recipe.flip) * (1 + (recipe.flip and recipe.vertical_flip)) * (1 + recipe.transpose)
    views = turned * ((2 if recipe.flip else 4) if shifted else 1)
    return views if recipe.test_views else 1


def _harder(recipe):
    """What makes training images harder than test images, in words."""
    augmented = recipe.flip or recipe.crop or recipe.brightness or recipe.contrast
    return " and ".join(["augmented"] * bool(augmented) + ["blended"] * bool(recipe.mixup))


PARTS = {  # of the record, by the names that answers know them by; a study is None where there is none
    "recipe": "recipe.values", "fitted": "recipe.fitted", "data": "data", "model": "model",
    "training": "training", "machine": "machine",
    "history": "training.history", "results": "results", "demonstration": "data.demonstration",
    "classes": "data.classes", "attention": "shown.attention",
}  # fmt: skip
STUDIES = ("search", "diary", "comparison", "elsewhere", "longer")  # of record.findings
PARTS |= {name: f"findings.{name}" for name in STUDIES}
# Each name, and how its value follows from the record: parts of it, and simple arithmetic on them.
LOOKUPS = {name: attrgetter(path) for name, path in PARTS.items()} | {
    "train_images": lambda r: sum(r.data.counts["train"].values()),
    "test_images": lambda r: sum(r.data.counts["test"].values()),
    "patches": lambda r: (r.recipe.values.image_size // r.recipe.values.patch_size) ** 2,
    "patch_dim": lambda r: r.recipe.values.channels * r.recipe.values.patch_size**2,
    "inner_dim": lambda r: r.recipe.values.heads * r.recipe.values.dim_head,
    "views": lambda r: _views(r.recipe.values),
    "harder": lambda r: _harder(r.recipe.values),
    "standard_recipe": lambda r: r.recipe.name == "default",
    "distance_trend": _distance_trend,
    "looks_nearer": _looks_nearer,
    "confusions": _confusions,
    "mean_confidence": _mean_confidence,
    "second_right": _second_right,
    "hardest": _hardest,
    "balanced": lambda r: round(r.results.largest_share * len(r.data.classes), 6) == 1,  # equal classes
    # Where the studies come from; the diary's rows by name.
    **{f"{name}_source": lambda r, name=name: _source(getattr(r.findings, name), r) for name in STUDIES},
    "effects": _effects,
    "diary_differs": _diary_differs,
}


def lookups(record):
    """{name: value} of all that an answer, or the report's template, can look up."""
    return {name: found_in(record) for name, found_in in LOOKUPS.items()}


# Markdown


def _picture(path, source, alt):
    """A picture beside an answer as a data URL. InputError if it is not there, cannot be shown, or has no
    description."""
    if not alt.strip():
        raise InputError(f"{path.name}: the picture {source} needs a description: ![what it shows]({source})")
    try:
        file = (path.parent / source).resolve()
        kind = PICTURES.get(file.suffix.lower())
        if not (kind and file.is_relative_to(path.parent.resolve()) and file.is_file()):
            raise ValueError(f"put a {', '.join(PICTURES)} file into {path.parent}")
        content = file.read_bytes()
        _check_picture(content)
    except (OSError, ValueError) as error:  # of a name too long or with a null byte, too
        shown = printable(source[:77], "?") + "..." * (len(source) > 77)
        fault = getattr(error, "strerror", None) or error
        raise InputError(f"{path.name}: cannot show the picture {shown}: {fault}") from None
    return data_url(content, kind)


def _check_picture(content):
    """ValueError if the bytes of a picture cannot be shown."""
    from PIL import Image

    if len(content) > PICTURE_MB * 1e6:
        raise ValueError(f"it has {len(content) / 1e6:.0f} MB, at most {PICTURE_MB} are allowed")
    try:
        with warnings.catch_warnings():  # of a size that is refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content))
        if fits := picture.width * picture.height <= PICTURE_PIXELS:
            picture.load()
    except Exception as error:  # a broken picture can raise nearly anything out of a decoder
        raise ValueError(f"it is damaged or not a picture ({type(error).__name__})") from None
    if not fits:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too many: make it smaller")


def _image(self, tokens, index, options, env):
    token = tokens[index]
    url = _picture(env["path"], unquote(token.attrs["src"]), token.content)
    return f'<img alt="{html.escape(token.content)}" src="{url}">'


def _fence(self, tokens, index, options, env):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer, TextLexer

    token = tokens[index]
    language, _, title = token.info.strip().partition(" ")
    lexer = PythonLexer() if language == "python" else TextLexer()
    body = highlight(token.content, lexer, HtmlFormatter(nowrap=True))
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    attributes = f'class="code" data-language="{html.escape(language)}"'  # for the LaTeX report
    return f"<figure {attributes}>{caption}<pre><code>{body}</code></pre></figure>\n"


def _markdown():
    md = MarkdownIt("commonmark", {"html": False, "typographer": True})
    md.enable(["table", "replacements", "smartquotes"])
    md.use(
        dollarmath_plugin,
        renderer=lambda latex, options: formulas.drawn(latex.strip(), options["display_mode"]),
        label_normalizer=lambda label: "eq-" + re.sub(r"[^\w-]", "-", label),
        label_renderer=lambda label: f'<span class="equation-number">({label.removeprefix("eq-")})</span>',
        double_inline=True,
    )
    md.add_render_rule("fence", _fence)
    md.add_render_rule("image", _image)
    # Links to files would stay as they are written; `_check_parts` refuses them.
    known = md.validateLink
    md.validateLink = lambda url: known(url) or url.lower().startswith("file:")
    return md


def read_answer(path):
    """The text of an answer. InputError if it cannot be read or is not UTF-8."""
    try:
        if path.stat().st_size > 1000 * ANSWER_KB:
            raise InputError(f"{path} has more than {ANSWER_KB} kB: shorten it")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def tokens(text):
    """The Markdown tokens of an answer, those within a line too."""
    parsed = _markdown().parse(text)
    return [*parsed, *(child for token in parsed for child in token.children or [])]


@lru_cache
def _targets():
    """The names of what an answer can refer to; some stand in a report only where there is what they show."""
    template = (TEMPLATES / "report.html.j2").read_text(encoding="utf-8")
    named = re.findall(r"(?:section|label)\('[^']*', '([\w-]+)'\)|plot\('([\w-]+)'", template)
    named = {section or plot for section, plot in named} | {"samples-train", "samples-test"}
    return sorted(named | {key for key, *_ in QUESTIONS})


def _check_parts(path, text):
    """InputError for a link, picture or formula that cannot be shown; one with a look-up in it is left."""
    for token in tokens(text):
        url = token.attrs.get("src") or token.attrs.get("href") or ""
        if url.startswith("#") and not (url.startswith("#eq-") or url[1:] in _targets()):
            raise InputError(f"{path.name}: there is no {url[:80]}; there are {', '.join(_targets())}")
        if token.type == "link_open" and url.strip().lower().startswith("file:"):
            raise InputError(
                f"{path.name}: {url[:80]} is a file of this machine: no reader can follow that link"
            )
        if token.type == "image" and "{{" not in url:
            _picture(path, unquote(url), token.content)
        if token.type.startswith("math") and not LOOKS_UP.search(token.content):
            latex = token.content.strip()
            _check_formula(path, latex)
            try:
                formulas.drawn(latex, token.type.startswith("math_block"))
            except Exception as error:  # ziamath raises many kinds for what it cannot set
                why = str(error) or type(error).__name__
                raise InputError(f"{path}: cannot set the formula {latex!r}: {why}") from None


def _check_formula(path, latex):
    """InputError for a formula that is longer or nested deeper than any that is read."""
    depths = itertools.accumulate((letter == "{") - (letter == "}") for letter in latex)
    if len(latex) > FORMULA or max(depths, default=0) > FORMULA_DEPTH:
        raise InputError(
            f"{path}: the formula {latex[:40]!r}... is too long ({FORMULA} letters) or nested too deep "
            f"({FORMULA_DEPTH} brackets)"
        )


def check_answers(folder):
    """Check a student's answers before the long work. InputError says which file, where and what."""
    if folder is None:
        return
    known = [f"{key}.md" for key, *_ in QUESTIONS]
    if not folder.is_dir():
        raise InputError(f"--answers {folder}: there is no such folder")
    files = sorted(folder.glob("*.md"))
    if not files:
        raise InputError(f"--answers {folder}: no answers in it; they are called {', '.join(known)}")
    for path in files:
        if path.name not in known:
            raise InputError(f"{path}: no question has this name; they are {', '.join(known)}")
        if not path.is_file():
            raise InputError(f"{path} is not a file")
    for path in sorted(folder.iterdir()):
        if f"{path.stem}.md" in known and path.suffix.lower() in NOT_READ:
            raise InputError(f"{path} is not read: save it as Markdown, {path.stem}.md")
    rehearsal.ask(folder, None)


def answer_texts(record, folder=None):
    """{question id: (path, Markdown)} of all answers, looked up; a file in `folder` replaces our own.

    InputError, with the file and where known the line, for a name or a formula that is not right.
    """
    own = {}
    if folder and any(folder.glob(f"*{FILLED}")):  # a PDF's: text, in which nothing is looked up
        for key, *_ in QUESTIONS:
            if (path := folder / f"{key}{FILLED}").is_file():
                own[key] = path, read_answer(path)
                _check_parts(*own[key])
    elif folder and any(folder.glob("*.md")):
        own = {key: (folder / f"{key}.md", text) for key, text in rehearsal.ask(folder, record).items()}
    ours = fill_in(record, ANSWERS, leave=own)
    return {key: own[key] if key in own else (ANSWERS / f"{key}.md", ours[key]) for key, *_ in QUESTIONS}


def own_answers(record, texts):
    """Of `answer_texts`, those that say something else than our own: the student's."""
    mine = {key: answer for key, answer in texts.items() if answer[0].parent != ANSWERS}
    ours = fill_in(record, ANSWERS, leave=texts.keys() - mine.keys())
    return {key: answer for key, answer in mine.items() if answer[1].split() != ours[key].split()}


def _check_template(environment, path, text):
    """InputError for a template that is not one, looks up what is not there, or takes in a file."""
    try:
        parsed = environment.parse(text)
        # Jinja calls a name undeclared, too, that is set under a condition.
        own = {node.name for node in parsed.find_all(jinja2.nodes.Name) if node.ctx != "load"}
        known = own | {*environment.globals, *LOOKUPS, "code"}
        unknown = jinja2.meta.find_undeclared_variables(parsed) - known
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.message}") from None
    if unknown:
        there = ", ".join(sorted(LOOKUPS))
        raise InputError(f"{path}: {{{{ {min(unknown)} }}}} cannot be looked up; there are {there}")
    if list(jinja2.meta.find_referenced_templates(parsed)):
        raise InputError(f"{path}: an answer cannot take in other files")


def fill_in(record, folder, tried=False, leave=()):
    """{question id: Markdown} of the answers in `folder`, looked up, but for those to `leave`.

    `tried`: on a made-up record, in which a study has other rows than a real one. InputError as above.
    """
    environment = _environment()
    known = lookups(record) | {"code": excerpts(record)}
    texts = {}
    for key, *_ in QUESTIONS:
        path = folder / f"{key}.md"
        if key in leave or not path.is_file():
            continue
        written = read_answer(path)
        _check_template(environment, path, written)
        try:
            text = environment.from_string(written).render(known)
        except (jinja2.TemplateError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            if tried and (
                "'dict object' has no" in str(error) or not isinstance(error, jinja2.TemplateError)
            ):
                continue
            line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
            raise InputError(f"{path}{line}: {error}") from None
        if not text.strip() and not (tried and LOOKS_UP.search(written)):
            raise InputError(f"{path} is empty: write the answer, or remove the file for ours")
        if len(text) > 1000 * TEXT_KB:
            raise InputError(
                f"{path} becomes {len(text) // 1000} kB of text, more than {TEXT_KB}: shorten it"
            )
        _check_parts(path, text)
        texts[key] = text
    return texts


def render_answers(texts):
    """{question id: (path, HTML)} of `answer_texts`."""
    markdown = _markdown()
    return {key: (path, markdown.render(text, {"path": path})) for key, (path, text) in texts.items()}
