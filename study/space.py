"""What a search tries: the ranges of the hyperparameters around a recipe, as Optuna's distributions."""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

# What is searched: all of this that `--set` does not fix. Where the recipe's own value lies outside,
# the range is widened to it. Epochs and image size stay: more of them costs time and is rarely worse.
SPACE = {
    # model
    "patch_size": range(4, 21),  # here: patches a side; those are taken that divide the image
    "dim": (64, 96, 128, 192, 256),
    "depth": IntDistribution(2, 10),
    "heads": (2, 4, 8),
    "dim_head": (16, 32, 64),
    "mlp_dim": (128, 256, 512, 1024),
    "pool": ("cls", "mean", "max"),
    "dropout": FloatDistribution(0.0, 0.3),
    "emb_dropout": FloatDistribution(0.0, 0.3),
    "mimetic": (False, True),
    # images
    "standardize": (False, True),
    "flip": (False, True),
    "vertical_flip": (False, True),
    "transpose": (False, True),
    "crop": FloatDistribution(0.0, 0.2),
    "brightness": FloatDistribution(0.0, 0.3),
    "contrast": FloatDistribution(0.0, 0.3),
    "mixup": FloatDistribution(0.0, 1.0),
    # optimisation
    "batch_size": (16, 32, 64, 128, 256),  # those that the training images fill
    "muon_learning_rate": FloatDistribution(2e-3, 5e-2, log=True),
    "learning_rate": FloatDistribution(1e-4, 5e-3, log=True),
    "weight_decay": FloatDistribution(1e-4, 0.5, log=True),
    "warmup_epochs": FloatDistribution(0.0, 10.0),
    "label_smoothing": FloatDistribution(0.0, 0.2),
}


def space_of(base, fixed, images):
    """{parameter: Optuna distribution} around the recipe `base`, without the names in `fixed`.

    images: number trained on.
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
        if isinstance(allowed, FloatDistribution | IntDistribution):
            # What the recipe switches off with 0, such as Muon, may stay off; 0 has no logarithm.
            low, log = (min(allowed.low, value), allowed.log) if value else (0, False)
            space[name] = type(allowed)(low, max(allowed.high, value), log=log)
        elif len(choices := sorted({*allowed, value})) > 1:
            space[name] = CategoricalDistribution(choices)
    return space


def suggest(trial, space):
    """Let Optuna choose all parameters."""
    for name, kind in space.items():
        if isinstance(kind, CategoricalDistribution):
            trial.suggest_categorical(name, kind.choices)
        elif isinstance(kind, IntDistribution):
            trial.suggest_int(name, kind.low, kind.high)
        else:
            trial.suggest_float(name, kind.low, kind.high, log=kind.log)


def changes_of(params, base):
    """{name: value} in which the recipe of these parameters differs from `base`; three digits suffice."""
    short = {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in params.items()}
    return {name: v for name, v in short.items() if getattr(base, name) not in (v, params[name])}
