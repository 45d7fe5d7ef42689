"""The recipe: every hyperparameter of a run in one place, with its default, its unit and its check.

A recipe is plain data. It is read from a `.toml` in recipes/, changed by `--set name=value`, saved
in the run record, and written into the submitted `.py`.
"""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from lab.errors import InputError

RECIPES = Path(__file__).parent.parent / "recipes"
# What lab/fitting.py chooses for the recipe `default`.
_FITTED = "channels pool mimetic standardize flip vertical_flip transpose crop mixup repeats epochs"
FITTED = frozenset(_FITTED.split())


def _value(default, doc, low=None, high=None, choices=None):
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. The defaults are the `default` recipe's but for `mimetic`: older records lack it."""

    # 200 x 200 is the size of NEU-CLS, so that no pixel is lost; 100 patches keep attention cheap.
    # The model (vit.ViT's arguments of the same names).
    image_size: int = _value(200, "side of the square the model sees, pixels", 4, 4096)
    patch_size: int = _value(20, "side of a patch, pixels; divides image_size", 1, 4096)
    channels: int = _value(1, "1 grey, 3 colour", choices=(1, 3))
    dim: int = _value(128, "width of a token", 1, 16384)
    depth: int = _value(3, "encoder blocks", 1, 256)
    heads: int = _value(4, "attention heads a block", 1, 1024)
    dim_head: int = _value(32, "width of a head", 1, 16384)
    mlp_dim: int = _value(256, "hidden width of the MLP", 1, 65536)
    pool: str = _value(
        "mean",
        "what the head reads: the class token, or all tokens' mean or maximum",
        choices=("cls", "mean", "max"),
    )
    dropout: float = _value(0.0, "dropout in the encoder, probability", 0.0, 0.99)
    emb_dropout: float = _value(0.0, "dropout after the embedding, probability", 0.0, 0.99)
    mimetic: bool = _value(False, "attention and positions start as training leaves them, near to near")

    # The images. Light differs from picture to picture on a steel strip, and says nothing of a defect.
    standardize: bool = _value(True, "each image to mean 0 and variance 1; else (x - 0.5) / 0.5")
    flip: bool = _value(True, "random flips, left-right")
    vertical_flip: bool = _value(True, "with flips: up-down too")
    transpose: bool = _value(False, "random swap of rows and columns (with flips: quarter turns)")
    crop: float = _value(0.06, "random shift, up to this share of the side", 0.0, 0.5)
    brightness: float = _value(0.0, "random brightness, +- this share of the range", 0.0, 1.0)
    contrast: float = _value(0.0, "random contrast, +- this share", 0.0, 1.0)
    mixup: float = _value(0.0, "two images blended, share from Beta(mixup, mixup); 0: never", 0.0, 100.0)
    balance: float = _value(
        0.5, "classes: one of n images is shown (most / n)^balance times as often", 0.0, 1.0
    )
    test_views: bool = _value(True, "test-time augmentation: average over flipped, turned or shifted views")

    # The optimisation.
    epochs: int = _value(48, "epochs, each scored on the test images", 1, 100_000)
    repeats: int = _value(1, "times that an epoch shows each training image", 1, 100_000)
    batch_size: int = _value(32, "images a step", 1, 1_000_000)
    muon_learning_rate: float = _value(0.01, "peak for the matrices; 0: AdamW for them too", 0.0, 10.0)
    learning_rate: float = _value(1e-3, "peak learning rate of AdamW", 1e-9, 10.0)
    weight_decay: float = _value(0.05, "decoupled weight decay", 0.0, 10.0)
    warmup_epochs: float = _value(1.0, "epochs of linear warm-up before the cosine", 0.0, 100_000)
    label_smoothing: float = _value(0.1, "label smoothing of the training loss", 0.0, 0.99)
    clip_norm: float = _value(1.0, "gradients are clipped to this norm; 0: never", 0.0, 1e6)

    seed: int = _value(42, "seed of weights, batch order and augmentation", 0, 2**31 - 1)
    split_seed: int = _value(42, "seed of the 70/30 split", 0, 2**31 - 1)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size = {self.image_size} does not divide into patches of patch_size = "
                f"{self.patch_size}: choose a patch_size that divides it"
            )

    def as_dict(self):
        """All values by name, in order: JSON-ready."""
        return dataclasses.asdict(self)

    def as_toml(self):
        """The text of a `.toml` with all values."""
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in self.as_dict().items())


def recipe_groups():
    """{heading: [names]} of the hyperparameters, in their order."""
    first_of = {"image_size": "Model", "standardize": "Images", "epochs": "Optimisation"}
    groups = {}
    for f in dataclasses.fields(Recipe):
        if f.name in first_of:
            names = groups[first_of[f.name]] = []
        names.append(f.name)
    return groups


def _checked(f, value):
    """`value` as the field's type, or InputError."""
    kind, meta = type(f.default), f.metadata
    # TOML has 1 and 1.0; a person who writes dropout = 0 means the number. True is an int in Python, so `is`.
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise InputError(f"{f.name} must be {names[kind]}, not {value!r}")
    if meta["choices"] and value not in meta["choices"]:
        allowed = " or ".join(str(c) for c in meta["choices"])
        raise InputError(f"{f.name} must be {allowed}, not {value!r}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        raise InputError(f"{f.name} must be from {meta['low']} to {meta['high']}, not {value}")
    return value


def check_names(names):
    """InputError, with the likeliest name meant, if one of the names is no hyperparameter's."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`--help` lists them"
            raise InputError(f"there is no hyperparameter {name!r}; {hint}")


def parse_setting(text):
    """(name, value) of a text "name=value", the value read as TOML. InputError where it cannot be read."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise InputError(f"--set {text!r}: write it as name=value, e.g. --set epochs=10")
    check_names([name])
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    if isinstance(fields[name].default, str):
        return name, value.strip().strip("\"'")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # ValueError: no TOML, or a number of thousands of digits
        shown = value.strip() if len(value) < 80 else value.strip()[:77] + "..."
        raise InputError(f"--set {name}: cannot read {shown!r} as a value") from None


def read_toml(path):
    """The values in a TOML file. InputError if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, thousands of digits
        raise InputError(f"{path} is not valid TOML: {' '.join(str(error).split())}") from None


def named_recipes():
    """The names of the recipes that come with the project, sorted."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def free_names(recipe_name, settings):
    """The hyperparameters of a run that may be fitted: those of `default` that no (name, value) sets."""
    if recipe_name != "default":
        return frozenset()
    return FITTED - {name for name, _ in settings}


def load_recipe(name_or_path="default", settings=()):
    """A Recipe from a name in recipes/ or the path of a `.toml`, with (name, value) `settings` on top.

    InputError if there is no such file, it is not TOML, or a name or value does not fit.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
        if not path.is_file():
            raise InputError(
                f"no recipe is called {str(name_or_path)!r}; there are {', '.join(named_recipes())}, "
                "or give the path of a .toml file"
            )
    values = read_toml(RECIPES / "default.toml") | read_toml(path) | dict(settings)
    try:
        check_names(values)
        return Recipe(**values)
    except InputError as error:
        raise InputError(f"recipe {path.name}: {error}") from None
