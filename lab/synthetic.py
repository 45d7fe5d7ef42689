"""The embedded demonstration data set: six steel-like textures, drawn from a seed.

Real defect images cannot be handed on, so these stand in for them where nobody gave any: the whole
command works on a fresh machine. They carry the class names of the assignment and look somewhat
like their namesakes, but they are drawings; no result on them says anything about steel.

Shapes: every field is float32 (SIZE, SIZE), rows first. Lengths are in pixels, angles in radians.
A defect is drawn in units of its strength: about -1 where it is darkest, 0 where there is none.
"""

import contextlib
import io
import math
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw

from lab.files import writing_whole

SIZE = 200  # pixels, each side
DEFAULT_PER_CLASS = 100
MARK = b"demonstration images drawn by a program"  # the zip's comment: knows it again anywhere


def _noise(rng, sigma_x, sigma_y=None):
    """White noise under a Gaussian blur of these standard deviations; mean 0, variance 1.

    It is drawn as Fourier coefficients, and only as many as the blur lets through: for big lumps
    that is a few hundred numbers instead of 40 000. It wraps around at the edges.
    """
    sigma_y = sigma_x if sigma_y is None else sigma_y
    rows, columns = (min(SIZE // 2, math.ceil(0.5 * SIZE / s)) for s in (sigma_y, sigma_x))
    y, x = np.arange(-rows, rows), np.arange(columns + 1)
    blur_y = np.exp(-2 * (np.pi * sigma_y * y / SIZE) ** 2).astype(np.float32)
    blur_x = np.exp(-2 * (np.pi * sigma_x * x / SIZE) ** 2).astype(np.float32)
    white = rng.standard_normal((len(y), 2 * len(x)), np.float32).view(np.complex64)
    spectrum = np.zeros((SIZE, SIZE // 2 + 1), np.complex64)
    spectrum[y, : len(x)] = white * blur_y[:, None] * blur_x
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    return (field / field.std()).astype(np.float32)


def _step(field, at, softness):
    """0 where the field is below `at`, 1 above, with an edge as soft as `softness`."""
    return 0.5 + 0.5 * np.tanh((field - at) / (2 * softness))


def _strokes(rng, count, angle, length, width, bright, wobble):
    """Strokes with pointed ends, near each other in bundles, `angle` from the vertical.

    `length` and `width` are ranges, `bright` is the share of bright strokes, and `wobble` is how
    far a stroke strays from straight, in pixels.
    """
    # Drawn at twice the size and halved, which smooths the edges.
    canvas = Image.new("F", (2 * SIZE, 2 * SIZE))
    pen = ImageDraw.Draw(canvas)
    t = np.linspace(-1, 1, 13)
    bundle = rng.uniform(0.05, 0.95, 2) * SIZE
    for _ in range(count):
        if rng.random() < 0.4:
            bundle = rng.uniform(0.05, 0.95, 2) * SIZE
        half_length = rng.uniform(*length) / 2
        half_width = rng.uniform(*width) / 2 * (1 - t**4) * rng.uniform(0.6, 1.2, t.size)
        middle = np.sin(rng.uniform(1, 4) * t + rng.uniform(0, 6)) + rng.normal(0, 0.15, t.size)
        middle = wobble * middle
        along = np.concatenate([t, t[::-1]]) * half_length + rng.normal(0, 30)
        across = np.concatenate([middle - half_width, (middle + half_width)[::-1]]) + rng.normal(0, 6)
        lean = angle + rng.normal(0, 0.03)
        x = bundle[0] + across * np.cos(lean) + along * np.sin(lean)
        y = bundle[1] - across * np.sin(lean) + along * np.cos(lean)
        ink = (1 if rng.random() < bright else -1) * rng.uniform(0.5, 1.2)
        pen.polygon((2 * np.stack([x, y], 1)).ravel().tolist(), fill=ink)
    return np.asarray(canvas.reduce(2)) * (1 + 0.3 * _noise(rng, 4))


def _crazing(rng):
    """A network of fine dark cracks: the zero lines of a rough random field, broken in places."""
    size, stretch = rng.uniform(3, 6), rng.uniform(1.1, 2)
    field = _noise(rng, size * stretch, size) + 0.35 * _noise(rng, size * stretch / 3, size / 3)
    # Distance to the zero line, so that all cracks are equally wide.
    slope_y, slope_x = np.gradient(field)
    distance = np.abs(field) / (np.hypot(slope_x, slope_y) + 0.03)
    cracks = np.exp(-((distance / rng.uniform(0.6, 1.0)) ** 2))
    whole = _noise(rng, 6) + 0.8 * _noise(rng, 25)
    return -1.2 * cracks * _step(whole, rng.uniform(-1.2, 0.2), 0.25)


def _inclusion(rng):
    """Some short spindles along the rolling direction, mostly dark."""
    count, angle = rng.integers(5, 18), rng.normal(0, 0.05)
    length, width = (14, rng.uniform(25, 80)), (2.5, rng.uniform(4, 11))
    return _strokes(rng, count, angle, length, width, bright=0.1, wobble=1.0)


def _patches(rng):
    """Big irregular blotches."""
    field = _noise(rng, rng.uniform(13, 24), rng.uniform(13, 24)) + 0.2 * _noise(rng, 3)
    shade = rng.choice([-1, -1, -1, 0.8])
    return shade * _step(field, at=rng.uniform(0.4, 1.3), softness=rng.uniform(0.06, 0.25))


def _pitted_surface(rng):
    """Many small dark pits, denser in some places than in others."""
    size = rng.uniform(0.9, 1.5)
    field = _noise(rng, size, size * rng.uniform(1, 1.5)) + rng.uniform(0.2, 0.7) * _noise(rng, 24)
    return -_step(field, rng.uniform(1.1, 1.9), 0.12)


def _rolled_in_scale(rng):
    """Flaky dark lumps in swarms, longer across the strip than along it, on mottled ground."""
    size = rng.uniform(1.5, 2.6)
    lumps = _noise(rng, size * rng.uniform(1.3, 2.3), size) + 0.2 * _noise(rng, 0.8)
    lumps = lumps + rng.uniform(0.4, 1) * _noise(rng, 14)
    return -_step(lumps, rng.uniform(1.2, 2.1), 0.2) + 0.12 * _noise(rng, 8, 4)


def _scratches(rng):
    """A few long thin lines in nearly one direction, mostly bright."""
    count, angle = rng.integers(2, 8), rng.choice([0, np.pi / 2]) + rng.normal(0, 0.12)
    length, width = (60, rng.uniform(120, 360)), (1.2, rng.uniform(2, 5))
    return _strokes(rng, count, angle, length, width, bright=0.85, wobble=rng.uniform(0, 2.5))


_DEFECTS = {
    "crazing": _crazing,
    "inclusion": _inclusion,
    "patches": _patches,
    "pitted_surface": _pitted_surface,
    "rolled-in_scale": _rolled_in_scale,
    "scratches": _scratches,
}
CLASSES = tuple(_DEFECTS)


def _steel(rng):
    """Rolled steel without a defect: grain, streaks of the rolls, clouds, uneven light, stains.

    The same for all classes, so that none is known by its ground.
    """
    across, down = np.meshgrid(*[np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)] * 2)
    steel = rng.uniform(0.1, 0.35) * _noise(rng, rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8))
    steel += rng.uniform(0.02, 0.15) * _noise(rng, rng.uniform(0.8, 2), rng.uniform(12, 60))
    steel += rng.uniform(0.1, 0.3) * _noise(rng, rng.uniform(20, 40))
    steel += rng.normal(0, 0.5) * across + rng.normal(0, 0.5) * down
    if rng.random() < 0.3:
        stain = _noise(rng, rng.uniform(6, 12)) + 0.3 * _noise(rng, 2)
        steel -= rng.uniform(0.2, 0.8) * _step(stain, 2.0, 0.15)
    return steel


def draw(class_name, rng):
    """One image of a class, uint8 (200, 200).

    Brightness, contrast, light and grain vary alike in all classes, and so does the strength of the
    defect: in some images it hardly shows.
    """
    strength = math.exp(rng.uniform(math.log(1.0), math.log(4.0)))
    image = _steel(rng) + strength * _DEFECTS[class_name](rng)
    image = rng.uniform(70, 190) + rng.uniform(14, 42) * ((image - image.mean()) / image.std())
    return image.round().clip(0, 255).astype(np.uint8)


def _png(class_name, n, seed):
    """Image n of a class as a PNG file."""
    child = np.random.SeedSequence(seed, spawn_key=(CLASSES.index(class_name), n))
    file = io.BytesIO()
    Image.fromarray(draw(class_name, np.random.default_rng(child))).save(file, "png", compress_level=1)
    return file.getvalue()


def write_dataset(zip_path, per_class=None, seed=0):
    """Write <class>/<class>_<n>.png, n = 1 to `per_class`, to a zip: whole or not at all.

    Without `per_class` it is DEFAULT_PER_CLASS. Image n of a class depends on `seed` alone, not on
    how many there are; equal arguments give equal bytes.
    """
    per_class = DEFAULT_PER_CLASS if per_class is None else per_class
    names = [(name, n) for name in CLASSES for n in range(1, per_class + 1)]
    with (
        writing_whole(zip_path) as file,
        zipfile.ZipFile(file, "w") as archive,
        # Threads pay as far as the cores go (more of them wait for Python's lock: slower).
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        # Closing drops what is not drawn yet, so that a fault or Ctrl-C ends at once.
        contextlib.closing(pool.map(lambda image: _png(*image, seed), names)) as pngs,
    ):
        archive.comment = MARK
        for (name, n), png in zip(names, pngs, strict=True):
            # A ZipInfo made by name is dated 1980-01-01: the same bytes each time.
            archive.writestr(zipfile.ZipInfo(f"{name}/{name}_{n}.png"), png)
