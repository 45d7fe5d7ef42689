"""What a search tries: the ranges of the hyperparameters around a recipe, as Optuna's distributions."""

from typing import NamedTuple

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution


class Numbers(NamedTuple):
    low: float
    high: float
    log: bool = False  # searched by its logarithm
    off: bool = False  # 0 may be chosen too, and means: without


# What is searched: all of this that `--set` does not fix. Where the recipe's own value lies outside,
# the range is widened to it. Epochs and image size stay: more of them costs time and is rarely worse.
SPACE = {
    # model
    "patch_size": range(4, 21),  # here: patches a side; those are taken that divide the image
    "dim": (64, 96, 128, 192, 256),
    "depth": Numbers(2, 10),
    "heads": (2, 4, 8),
    "dim_head": (16, 32, 64),
    "mlp_dim": (128, 256, 512, 1024),
    "pool": ("cls", "mean"),
    "dropout": Numbers(0.0, 0.3),
    "emb_dropout": Numbers(0.0, 0.3),
    # images
    "standardize": (False, True),
    "flip": (False, True),
    "transpose": (False, True),
    "crop": Numbers(0.0, 0.2),
    "brightness": Numbers(0.0, 0.3),
    "contrast": Numbers(0.0, 0.3),
    "mixup": Numbers(0.0, 1.0),
    # optimisation
    "batch_size": (16, 32, 64, 128, 256),  # those that the training images fill
    "muon_learning_rate": Numbers(2e-3, 5e-2, log=True, off=True),
    "learning_rate": Numbers(1e-4, 5e-3, log=True),
    "weight_decay": Numbers(1e-4, 0.5, log=True, off=True),
    "warmup_epochs": Numbers(0.0, 10.0),
    "label_smoothing": Numbers(0.0, 0.2),
}


def _switch(name):
    return f"use {name}"


def space_of(base, fixed, images):
    """{parameter: Optuna distribution} around the recipe `base`, without the names in `fixed`.

    A value that may be off has a parameter "use NAME" beside its own. images: number trained on.
    """
    space = {}
    for name, allowed in SPACE.items():
        value = getattr(base, name)
        if name in fixed:
            continue
        if name == "patch_size":
            allowed = [base.image_size // n for n in allowed if base.image_size % n == 0]
        if name == "batch_size":
            allowed = [size for size in allowed if size <= images]
        if not isinstance(allowed, Numbers):
            choices = sorted({*allowed, value})
            if len(choices) > 1:
                space[name] = CategoricalDistribution(choices)
            continue
        if allowed.off:
            space[_switch(name)] = CategoricalDistribution([False, True])
        inside = [allowed.low, allowed.high] if allowed.off and not value else [*allowed[:2], value]
        kind = IntDistribution if isinstance(value, int) else FloatDistribution
        space[name] = kind(min(inside), max(inside), log=allowed.log)
    return space


def params_of(base, space):
    """The parameters that give the recipe `base` itself."""
    params = {}
    for name in space:
        value = getattr(base, name.removeprefix("use "))
        if name.startswith("use "):
            params[name] = bool(value)
        elif value or _switch(name) not in space:
            params[name] = value
    return params


def suggest(trial, space):
    """Let Optuna choose all parameters; a value that is switched off is not asked for."""
    for name, kind in space.items():
        if _switch(name) in space and not trial.params[_switch(name)]:
            continue
        if isinstance(kind, CategoricalDistribution):
            trial.suggest_categorical(name, kind.choices)
        elif isinstance(kind, IntDistribution):
            trial.suggest_int(name, kind.low, kind.high)
        else:
            trial.suggest_float(name, kind.low, kind.high, log=kind.log)


def changes_of(params, base):
    """{name: value} in which the recipe of these parameters differs from `base`; three digits suffice."""
    values = {}
    for name, value in params.items():
        if name.startswith("use "):
            if not value:
                values[name.removeprefix("use ")] = 0.0
        elif value != getattr(base, name):
            values[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    return {name: value for name, value in values.items() if value != getattr(base, name)}
