"""The embedded demonstration data set: six steel-like textures, drawn from a seed.

Real defect images can't be handed on, so these stand in for them where nobody gave any: the whole
command works on a fresh machine. They carry the class names of the assignment and look somewhat like
their namesakes, but they are drawings; no result on them says anything about steel.

    python synthetic.py dataset.zip --per-class 120 --seed 0
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 200  # pixels, each side
DEFAULT_PER_CLASS = 120
MARK = b"demonstration images drawn by synthetic.py"  # the zip's comment: knows it again anywhere

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)
_FY, _FX = np.fft.fftfreq(SIZE).astype(np.float32)[:, None], np.fft.rfftfreq(SIZE).astype(np.float32)[None]


def _blur(image, sigma_x, sigma_y):
    """Gaussian blur (standard deviations in pixels), wrapping around at the edges."""
    response = np.exp(-2 * np.pi**2 * ((sigma_x * _FX) ** 2 + (sigma_y * _FY) ** 2))
    return np.fft.irfft2(np.fft.rfft2(image) * response, s=image.shape)


def _noise(rng, sigma_x, sigma_y=None):
    """Smooth random field with mean 0 and standard deviation 1; the sigmas set the size of its lumps."""
    field = _blur(
        rng.standard_normal((SIZE, SIZE), np.float32), sigma_x, sigma_x if sigma_y is None else sigma_y
    )
    return (field - field.mean()) / field.std()


def _step(field, at, softness):
    """0 below `at`, 1 above it, with a soft edge."""
    return 1 / (1 + np.exp(-np.clip((field - at) / softness, -30, 30)))


def _stroke(rng, angle, length, width, wobble):
    """A soft line, 1 on its middle: somewhere in the image, `angle` in radians from the vertical."""
    x, y = _X - rng.uniform(10, SIZE - 10), _Y - rng.uniform(10, SIZE - 10)
    along = y * np.cos(angle) + x * np.sin(angle)
    across = x * np.cos(angle) - y * np.sin(angle)
    across = across + wobble * np.sin(along / rng.uniform(8, 25) + rng.uniform(0, 6.3))
    taper = _step(length / 2 - np.abs(along), 0, max(1.0, length / 20))
    return np.exp(-((across / width) ** 2)) * taper


def _crazing(rng):
    """A network of fine dark cracks: the zero lines of a random field."""
    size = rng.uniform(3.5, 7)
    cracks = np.exp(-((_noise(rng, size, size * rng.uniform(0.6, 1)) / rng.uniform(0.1, 0.22)) ** 2))
    return -1.3 * cracks * (0.4 + 0.6 * _step(_noise(rng, 25), rng.uniform(-0.8, 0.2), 0.4))


def _inclusion(rng):
    """A few short spindles along the rolling direction, mostly dark."""
    drawing = np.zeros((SIZE, SIZE))
    for _ in range(rng.integers(2, 8)):
        sign = -1 if rng.random() < 0.8 else 0.8
        stroke = _stroke(
            rng, rng.normal(0, 0.06), rng.uniform(18, 80), rng.uniform(1.8, 5), rng.uniform(0.3, 1.5)
        )
        drawing += sign * rng.uniform(0.7, 1.5) * stroke
    return 1.3 * drawing


def _patches(rng):
    """Big irregular blotches."""
    field = _noise(rng, rng.uniform(14, 26)) + 0.25 * _noise(rng, 3)
    return rng.choice([-1.4, -1.4, 1.0]) * _step(field, rng.uniform(0.3, 1.1), 0.12)


def _pitted_surface(rng):
    """Many small dark pits, denser in some places than in others."""
    density = rng.uniform(0.004, 0.03) * np.exp(rng.uniform(0.2, 1.2) * _noise(rng, 22))
    pits = (rng.random((SIZE, SIZE)) < density) * rng.uniform(0.4, 1, (SIZE, SIZE))
    width = rng.uniform(0.7, 1.5)
    return -1.6 * np.minimum(1, _blur(pits, width, width) * 2 * np.pi * width**2)


def _rolled_in_scale(rng):
    """Flaky dark lumps, a little longer across the strip than along it."""
    flakes = _noise(rng, rng.uniform(2.5, 5), rng.uniform(1.2, 2.2))
    area = _step(_noise(rng, 18), rng.uniform(-0.8, 0.3), 0.35)
    return -1.5 * _step(flakes, rng.uniform(0.5, 1.1), 0.2) * area


def _scratches(rng):
    """A few long thin lines in nearly one direction, mostly bright."""
    drawing, angle = np.zeros((SIZE, SIZE)), rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15)
    for _ in range(rng.integers(1, 6)):
        sign = 1 if rng.random() < 0.7 else -0.8
        stroke = _stroke(
            rng, angle + rng.normal(0, 0.05), rng.uniform(70, 260), rng.uniform(0.7, 2.2), rng.uniform(0, 0.8)
        )
        drawing += sign * rng.uniform(0.6, 1.6) * stroke
    return 1.4 * drawing


_DEFECTS = {
    "crazing": _crazing,
    "inclusion": _inclusion,
    "patches": _patches,
    "pitted_surface": _pitted_surface,
    "rolled-in_scale": _rolled_in_scale,
    "scratches": _scratches,
}
CLASSES = tuple(_DEFECTS)


def draw(class_name, rng):
    """One image of a class, uint8 (200, 200), from a NumPy Generator. ValueError for no such class.

    Brightness, contrast, lighting and grain vary alike in all classes, so that they tell nothing.
    """
    if class_name not in _DEFECTS:
        raise ValueError(f"no class is called {class_name!r}; there are {', '.join(CLASSES)}")
    grain = _noise(rng, rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8))
    rolling = _noise(rng, rng.uniform(0.8, 2), rng.uniform(12, 40))
    cloud = _noise(rng, rng.uniform(20, 40))
    light = rng.normal(0, 0.5) * (_X / SIZE - 0.5) + rng.normal(0, 0.5) * (_Y / SIZE - 0.5)
    steel = 0.4 * grain + rng.uniform(0.1, 0.4) * rolling + rng.uniform(0.1, 0.4) * cloud + light
    strength = rng.uniform(1.2, 3.5)
    image = steel + strength * _DEFECTS[class_name](rng)
    image = (image - image.mean()) / image.std()
    return (rng.uniform(70, 190) + rng.uniform(14, 42) * image).round().clip(0, 255).astype(np.uint8)


def _png(class_name, n, seed):
    """Image n of a class as PNG bytes."""
    rng = np.random.default_rng([seed, CLASSES.index(class_name), n])
    png = io.BytesIO()
    Image.fromarray(draw(class_name, rng)).save(png, "png", compress_level=1)
    return png.getvalue()


def write_dataset(zip_path, per_class=None, seed=0):
    """Write <class>/<class>_<n>.png, n = 1 to `per_class`, to a zip: whole or not at all.

    Image n of a class depends on `seed` alone, not on how many there are; equal arguments give equal
    bytes. ValueError if `per_class` is below 1.
    """
    per_class = DEFAULT_PER_CLASS if per_class is None else per_class
    if per_class < 1:
        raise ValueError(f"at least 1 image for each class is needed, not {per_class}")
    zip_path = Path(zip_path)
    handle, temporary = tempfile.mkstemp(prefix=f".{zip_path.name}-", dir=zip_path.parent)
    try:
        with (
            ThreadPoolExecutor() as pool,
            os.fdopen(handle, "wb") as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            archive.comment = MARK
            names = [(name, n) for name in CLASSES for n in range(1, per_class + 1)]
            pngs = pool.map(lambda image: _png(*image, seed), names)
            for (name, n), png in zip(names, pngs):
                # A ZipInfo made by name is dated 1980-01-01: the same bytes each time.
                archive.writestr(zipfile.ZipInfo(f"{name}/{name}_{n}.png"), png)
        os.chmod(temporary, 0o644)
        os.replace(temporary, zip_path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Draw the demonstration data set: a zip with a folder of grey images for each class."
    )
    parser.add_argument("zip", type=Path, help="the file to write")
    parser.add_argument("--per-class", type=int, default=DEFAULT_PER_CLASS, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    try:
        write_dataset(args.zip, args.per_class, args.seed)
    except (ValueError, OSError) as error:
        print(f"synthetic.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
