"""The default recipe fits the images that it is given, and what a user sets stands."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY_ARGS, call
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from data import BatchLoader, Split
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


def slope(k, rng):
    """Brighter below (class 0) or above (1)."""
    return wedge(k, rng).T


def spot(k, rng):
    """A spot of any side of the middle: near it (class 0) or far from it (1), as on a wafer."""
    image, angle = rng.normal(140, 10, (64, 64)), rng.uniform(0, 2 * np.pi)
    y, x = (32 + (5 + 20 * k) * np.array([np.sin(angle), np.cos(angle)])).astype(int)
    image[y - 4 : y + 4, x - 4 : x + 4] -= 80
    return image


def light(k, rng):
    """Nothing but the light tells the classes apart."""
    return rng.normal(60 + 120 * k, 10, (64, 64))


def grain(k, rng):
    """Coarse (class 0) or fine (1) grain, the same from all sides, in light that says nothing."""
    size = 16 if k == 0 else 64
    return np.kron(rng.normal(rng.uniform(90, 160), 20, (size, size)), np.ones((64 // size,) * 2))


@pytest.mark.parametrize(
    ("draw", "flip", "vertical_flip", "transpose", "large_shifts", "standardize"),
    [
        (line, True, True, False, False, True),
        (wedge, False, False, False, True, True),  # shifted, it is brighter on the same side
        (slope, True, False, False, True, True),
        (spot, True, True, True, False, True),
        (light, True, True, True, True, False),
        (grain, True, True, True, True, True),
    ],
)
def test_what_would_erase_the_difference_between_the_classes_is_not_done(
    draw, flip, vertical_flip, transpose, large_shifts, standardize
):
    fit = fitting.fit_recipe(split_of(draw), RECIPE, FITTED)
    found = fit.recipe
    assert (found.flip, found.vertical_flip, found.transpose) == (flip, vertical_flip, transpose)
    assert found.crop == fitting.CROPS[large_shifts]
    assert found.standardize is standardize
    assert all("60 held-out training images" in fit.reasons[name] for name in ("flip", "crop"))


@pytest.mark.parametrize("images", [120, 1797])
def test_handwriting_is_not_flipped_and_hardly_shifted(images):
    """Real pictures, as scikit-learn brings them: all 1,797 digits, or a dozen of each."""
    digits = load_digits()
    rows = torch.randperm(1797, generator=torch.Generator().manual_seed(3))[:images]
    pixels = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)[rows, None]
    pixels = pixels.repeat_interleave(5, -1).repeat_interleave(5, -2)
    labels, names = torch.from_numpy(digits.target)[rows], [str(i) for i in range(images)]
    split = Split(pixels, torch.arange(images), labels, list("0123456789"), names, names)
    recipe = fitting.fit_recipe(split, RECIPE, FITTED).recipe
    assert (recipe.flip, recipe.vertical_flip, recipe.transpose) == (False, False, False)
    assert recipe.crop < 0.1


def probe_of(pixels, labels):
    """A probe of images, each half of them held out in turn."""
    halves = torch.arange(len(labels)).chunk(2)
    return fitting._Probe(fitting._normalize(fitting._shrink(pixels), True), labels, [halves, halves[::-1]])


def test_the_probe_explains_nothing_where_there_is_nothing_to_learn():
    """Held-out images are not among those learned from."""
    labels, pixels = torch.arange(2).repeat(50), torch.randint(0, 256, (100, 1, 64, 64), dtype=torch.uint8)
    probe = probe_of(pixels, labels)
    assert float(probe.weight @ probe.residual) > 0.8
    blank = probe_of(torch.full_like(pixels, 7), labels)
    assert float(blank.weight @ blank.residual) == pytest.approx(1)
    assert blank.explained(blank.residual) == "0.000"


def test_what_is_explained_is_the_coefficient_of_determination():
    """As scikit-learn has it, of answers brought to their best scale."""
    labels = torch.arange(60) % 3
    pixels = torch.stack([torch.from_numpy(grain(k % 2, np.random.default_rng(k))) for k in range(60)])
    pixels[labels == 2] = pixels[labels == 2].flip(-1) * torch.linspace(0.5, 1, 64)
    probe = probe_of(pixels.clamp(0, 255).to(torch.uint8)[:, None], labels)
    target, answers = np.eye(3)[labels], np.zeros((60, 3))
    for rest, held_out in probe.folds:
        answers[held_out] = fitting._answers(probe.seen, torch.eye(3)[labels], rest, held_out)
    answers -= answers.mean(0)
    line = LinearRegression(fit_intercept=False).fit(answers.reshape(-1, 1), (target - 1 / 3).reshape(-1, 1))
    expected = r2_score(target, line.coef_.item() * answers + 1 / 3, multioutput="variance_weighted")
    assert 0.3 < expected < 1
    assert 1 - float(probe.weight @ probe.residual) == pytest.approx(expected, abs=1e-4)


def test_a_loss_within_the_noise_is_none():
    """Of 60 images: as many right only before as only after, one more, or three more of three."""
    weight = torch.full((60,), 1 / 60)

    def lost(only_before, only_after, **least):
        before, after = torch.zeros(60), torch.zeros(60)
        before[:only_after] = after[-only_before:] = 1  # 1: wrong
        return fitting.is_lost(before, after, weight, **least)

    assert not lost(10, 10)
    assert not lost(11, 10)
    assert lost(3, 0)
    assert lost(20, 10)
    assert lost(20, 10, least=0.16)
    assert not lost(20, 10, least=0.17)  # 10 of 60


def test_what_a_user_sets_stands():
    assert free_names("default", [("flip", True), ("epochs", 5)]) == FITTED - {"flip", "epochs"}
    assert free_names("best", []) == frozenset()  # a recipe that is named stands as it is
    own = parse_options(["--student-id", "1", "--recipe", str(RECIPES / "default.toml")])
    assert own.free == frozenset()  # and so does a file, whatever it is called
    assert own.recipe_name == "default.toml"  # which claims nothing that was found out for ours
    flips = {"flip", "vertical_flip", "transpose"}
    fit = fitting.fit_recipe(split_of(wedge), RECIPE, FITTED - flips - {"repeats", "mixup", "mimetic"})
    assert fit.recipe.flip and not fit.recipe.transpose
    assert (fit.recipe.repeats, fit.recipe.mixup) == (1, RECIPE.mixup)
    assert set(fit.reasons) == {"epochs", "standardize", "pool", "crop"}
    assert fitting.fit_recipe(split_of(wedge), RECIPE, frozenset()) == (RECIPE, {})


def test_shifts_are_large_where_the_place_says_nothing_and_few_images_are_blended():
    grains, spots = (fitting.fit_recipe(split_of(draw), RECIPE, FITTED).recipe for draw in (grain, spot))
    assert grains.crop > 0.2 > 0.1 > spots.crop
    assert grains.mixup > 0
    assert fitting.fit_recipe(split_of(grain, count=fitting.FEW // 2), RECIPE, FITTED).recipe.mixup == 0


def test_few_images_in_which_the_place_says_nothing_have_no_mimetic_start():
    ours, many = load_recipe("default"), split_of(grain, count=fitting.FEW // 2)
    few, places = (fitting.fit_recipe(split_of(draw), ours, FITTED) for draw in (grain, spot))
    assert ours.mimetic and places.recipe.mimetic and fitting.fit_recipe(many, ours, FITTED).recipe.mimetic
    assert not few.recipe.mimetic and "fewer than 100" in few.reasons["mimetic"]
    assert fitting.fit_recipe(split_of(grain), ours, FITTED - {"mimetic"}).recipe.mimetic


@pytest.mark.parametrize("images", [2, 30, 126, 1260, 9_000, 60_000, 300_000, 5_000_000])
def test_the_training_has_a_floor_and_a_ceiling_in_images_shown(images):
    recipe = fitting.fit_length(images, RECIPE, FITTED).recipe
    shown = images * recipe.repeats * recipe.epochs
    assert 28_000 <= shown <= 1_020_000 or recipe.epochs == 1
    if 1_000 < images < 40_000:
        assert 24 <= recipe.repeats * recipe.epochs <= 48
    assert recipe.epochs <= 25  # each ends with a look at the test images


def needle(k, rng):
    """Noise, in class 1 with a dot of three pixels anywhere."""
    image, (y, x) = rng.normal(140, 20, (64, 64)), rng.integers(4, 60, 2)
    image[y, x : x + 3] -= 60 * k
    return image


def test_a_small_thing_is_told_by_the_maximum_and_a_texture_by_the_mean():
    anywhere, placed, texture = (
        fitting.fit_recipe(split_of(draw), RECIPE, FITTED) for draw in (needle, spot, grain)
    )
    assert (anywhere.recipe.pool, placed.recipe.pool, texture.recipe.pool) == ("max", "max", "mean")
    assert anywhere.recipe.crop > placed.recipe.crop
    assert "of the largest responses" in anywhere.reasons["pool"]
    free = FITTED - {"pool"}
    assert fitting.fit_recipe(split_of(needle), RECIPE, free).recipe.pool == "mean"  # as was set


def test_what_a_linear_classifier_hardly_explains_is_trained_for_longer():
    hard, easy = (fitting.fit_recipe(split_of(draw), RECIPE, FITTED) for draw in (needle, line))
    shown = [60 * fit.recipe.repeats * fit.recipe.epochs for fit in (hard, easy)]
    assert 57_000 <= shown[0] <= 63_000 and 28_000 <= shown[1] <= 32_000
    assert "explains little" in hard.reasons["epochs"] and "explains" not in easy.reasons["epochs"]
    given = dataclasses.replace(RECIPE, epochs=3)
    assert fitting.fit_recipe(split_of(needle), given, FITTED - {"epochs"}).recipe.epochs == 3


def test_what_rare_classes_are_shown_more_often_is_counted():
    even = split_of(grain)
    rare = even.take(torch.arange(39))  # 30 of one class, 9 of the other
    told = [fitting.fit_recipe(split, RECIPE, FITTED) for split in (even, rare)]
    assert "60 training images are shown 480 times each, 28,800 in all" in told[0].reasons["epochs"]
    recipe = told[1].recipe
    shown = len(BatchLoader(rare, recipe, "cpu", train=True).dataset) * recipe.epochs
    words = re.search("those of rare classes more often, about ([0-9,]+) in all", told[1].reasons["epochs"])
    assert int(words[1].replace(",", "")) == pytest.approx(shown, rel=0.02)


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
