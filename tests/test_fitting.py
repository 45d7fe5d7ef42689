"""The default recipe fits the images that it is given, and what a user sets stands."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import TINY_ARGS, call
from PIL import Image

from data import Split
from lab import fitting
from lab.options import parse_options
from lab.recipe import FITTED, RECIPES, Recipe, free_names, load_recipe
from study import runs

RECIPE = Recipe()


def split_of(draw, classes=2, count=30, side=64, channels=1):
    """A training Split of `count` images a class, drawn by draw(class, random numbers) -> values 0 to 255."""
    images = [draw(k, np.random.default_rng(100 * k + i)) for k in range(classes) for i in range(count)]
    pixels = np.stack(images).clip(0, 255).astype(np.uint8).reshape(-1, channels, side, side)
    labels, names = torch.arange(classes).repeat_interleave(count), [str(i) for i in range(len(pixels))]
    rows = torch.arange(len(pixels))
    return Split(torch.from_numpy(pixels), rows, labels, [f"class {k}" for k in range(classes)], names, names)


def line(k, rng):
    """A dark line across noise: upright (class 0) or level (1)."""
    image, at = rng.normal(140, 10, (64, 64)), rng.integers(8, 56)
    image[(slice(None), slice(at, at + 3)) if k == 0 else slice(at, at + 3)] -= 80
    return image


def wedge(k, rng):
    """Brighter to the right (class 0) or to the left (1)."""
    ramp = np.linspace(-30, 30, 64) * (1 if k == 0 else -1)
    return rng.normal(130, 20, (64, 64)) + ramp


def light(k, rng):
    """Nothing but the light tells the classes apart."""
    return rng.normal(60 + 120 * k, 10, (64, 64))


def grain(k, rng):
    """Coarse (class 0) or fine (1) grain, the same from all sides, in light that says nothing."""
    size = 16 if k == 0 else 64
    return np.kron(rng.normal(rng.uniform(90, 160), 20, (size, size)), np.ones((64 // size,) * 2))


@pytest.mark.parametrize(
    ("draw", "flip", "transpose", "standardize"),
    [
        (line, True, False, True),
        (wedge, False, False, True),
        (light, True, True, False),
        (grain, True, True, True),
    ],
)
def test_what_would_erase_the_difference_between_the_classes_is_not_done(draw, flip, transpose, standardize):
    fit = fitting.fit_recipe(split_of(draw), RECIPE, FITTED)
    assert (fit.recipe.flip, fit.recipe.transpose) == (flip, transpose)
    assert fit.recipe.standardize is standardize
    assert "60 held-out training images" in fit.reasons["flip"]


def test_the_probe_learns_nothing_where_there_is_nothing_to_learn():
    """It errs as one who guesses: held-out images are not among those learned from."""
    labels, pixels = torch.arange(2).repeat(50), torch.randint(0, 256, (100, 1, 64, 64), dtype=torch.uint8)
    halves = torch.arange(50), torch.arange(50, 100)
    errors = fitting._errors(fitting._shrink(pixels, True), labels, [halves, halves[::-1]])
    assert all(0.25 <= share <= 0.75 for share in errors)


def test_a_loss_within_the_noise_of_few_images_is_none(monkeypatch):
    """30 of 60 held-out images wrong, 33 with flips: a difference that says nothing; 50 says something."""
    for flipped, kept in ((0.55, True), (50 / 60, False)):
        monkeypatch.setattr(fitting, "_errors", lambda *_, share=flipped: [0.5, share, 1.0])
        assert fitting.fit_recipe(split_of(grain), RECIPE, FITTED).recipe.flip is kept


def test_what_a_user_sets_stands():
    assert free_names("default", [("flip", True), ("epochs", 5)]) == FITTED - {"flip", "epochs"}
    assert free_names("best", []) == frozenset()  # a recipe that is named stands as it is
    own = parse_options(["--student-id", "1", "--recipe", str(RECIPES / "default.toml")])
    assert own.free == frozenset()  # and so does a file, whatever it is called
    assert own.recipe_name == "default.toml"  # which claims nothing that was found out for ours
    fit = fitting.fit_recipe(split_of(wedge), RECIPE, FITTED - {"flip", "transpose", "repeats", "mixup"})
    assert fit.recipe.flip and not fit.recipe.transpose
    assert (fit.recipe.repeats, fit.recipe.mixup) == (1, RECIPE.mixup)
    assert set(fit.reasons) == {"epochs", "standardize", "crop"}
    assert fitting.fit_recipe(split_of(wedge), RECIPE, frozenset()) == (RECIPE, {})


def test_shifts_are_large_where_the_place_says_nothing_and_few_images_are_blended():
    grains, wedges = (fitting.fit_recipe(split_of(draw), RECIPE, FITTED).recipe for draw in (grain, wedge))
    assert grains.crop > 0.2 > 0.1 > wedges.crop
    assert grains.mixup > 0
    assert fitting.fit_recipe(split_of(grain, count=fitting.FEW // 2), RECIPE, FITTED).recipe.mixup == 0


@pytest.mark.parametrize("images", [2, 30, 126, 1260, 9_000, 60_000, 300_000, 5_000_000])
def test_the_training_has_a_floor_and_a_ceiling_in_images_shown(images):
    recipe = fitting.fit_length(images, RECIPE, FITTED).recipe
    shown = images * recipe.repeats * recipe.epochs
    assert 28_000 <= shown <= 1_020_000 or recipe.epochs == 1
    if 1_000 < images < 40_000:
        assert 24 <= recipe.repeats * recipe.epochs <= 48
    assert recipe.epochs <= 25  # each ends with a look at the test images


def test_classes_of_one_or_two_images_are_not_probed():
    fit = fitting.fit_recipe(split_of(grain, classes=5, count=2), RECIPE, FITTED)
    assert (fit.recipe.flip, fit.recipe.standardize) == (RECIPE.flip, RECIPE.standardize)
    assert "too few images" in fit.reasons["flip"]
    split = split_of(grain, classes=2, count=12)
    split.digests = [f"coil {label}" for label in split.labels.tolist()]  # as --group has them
    assert "too few images" in fitting.fit_recipe(split, RECIPE, FITTED).reasons["flip"]


def test_a_run_fits_its_recipe_and_says_so(tmp_path, capsys):
    """Rust and moss, equal in grey: trained in colour, for as many epochs as such a set needs."""
    for k, (name, colour) in enumerate({"moss": (60, 131, 60), "rust": (200, 60, 60)}.items()):
        for i in range(10):
            rng = np.random.default_rng(20 * k + i)
            image = np.array(colour) + rng.normal(0, 8, (40, 40, 1))
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    kept = [word for word in TINY_ARGS if word.startswith(("image", "patch", "dim", "depth", "heads", "mlp"))]
    settings = [word for name in [*kept, "repeats=2", "epochs=4"] for word in ("--set", name)]
    where = ["--student-id", "7", "--data", tmp_path / "data", "--output-dir", tmp_path]
    assert call(*where, *settings, "--no-verify") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "channels = 3 (20 of 20 images looked at have colours)" in out
    record = json.loads((tmp_path / "7" / "run" / "record.json").read_text())
    recipe = record["recipe"]
    assert recipe["values"]["channels"] == 3
    assert (recipe["values"]["repeats"], recipe["values"]["epochs"]) == (2, 4)
    assert set(recipe["reasons"]) == FITTED - {"repeats", "epochs"}
    assert "channels=3" in (tmp_path / "7" / "7_Lab8_Homework.py").read_text()


def test_grey_in_three_channels_is_not_colour(tmp_path):
    paths = []
    for i in range(10):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((20, 20), 20 * i, np.uint8)).convert("RGB").save(paths[-1])
    assert fitting.fit_colour(fitting.count_coloured(paths), RECIPE, FITTED).recipe.channels == 1
    colour = dataclasses.replace(RECIPE, channels=3)
    assert fitting.fit_colour((0, 0), colour, FITTED - {"channels"}) == (colour, {})


def test_studies_fit_the_recipe_too(tmp_path):
    for k in range(2):
        for i in range(12):
            path = tmp_path / "d" / f"{'ab'[k]}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = wedge(k, np.random.default_rng(20 * k + i))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    where, recipe = runs.Where(str(tmp_path / "d")), load_recipe("default")
    assert not runs.fit(where, recipe, FITTED).flip
    assert runs.fit(where, recipe, frozenset()) == recipe
