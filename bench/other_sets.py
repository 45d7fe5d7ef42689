#!/usr/bin/env python3
"""Other sets than those by which the recipe was tuned.

    python bench/other_sets.py FOLDER --cells elpv-dataset --signs Sign-Language-Digits-Dataset \\
        --pcb DeepPCB --bricks CrackCV --coffee lara2018
    python bench/datasets.py FOLDER/digits FOLDER/wafers FOLDER/textures --output x.json

digits: 1,797 handwritten digits, 8 x 8, as scikit-learn brings them (Alpaydin and Kaynak 1998). wafers: 860
drawn maps of failed dies, 52 x 52, in eight kinds, laid out like those of WM-811K (Wu, Jang, Chen 2015).
textures: 800 drawn surfaces, 512 x 512, with a spot of 16 to 28 pixels, a scratch of 40 to 100, or neither,
in the manner of DAGM 2007 (Wieler and Hahn).

From clones, each for research and not ours to hand on:
cells: github.com/zae-bayern/elpv-dataset, electroluminescence pictures of solar cells, 300 x 300 (Deitsch et
al. 2019): the 2,223 that are surely functional or surely defective. signs:
github.com/ardamavi/Sign-Language-Digits-Dataset, 2,062 photographs of hands, ten classes, 100 x 100. pcb:
github.com/tangsanli5201/DeepPCB (Tang et al. 2019), six kinds of defects of printed circuits, 300 of each,
cut out 64 x 64. bricks: github.com/Smalleaves123/CrackCV, brickwork with and without cracks, 350 of each,
227 x 227, in colour. coffee: github.com/esgario/lara2018, 2,722 pictures of sound and diseased coffee leaves,
five classes, in colour and of any size (Esgario et al. 2020, https://doi.org/10.1016/j.compag.2019.105162).
"""

import argparse
import random
import shutil
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lab  # noqa: F401, I001 (first: it says which packages are missing)
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

SIDE = 52
WAFERS = {
    "center": 120,
    "donut": 60,
    "edge-loc": 120,
    "edge-ring": 150,
    "loc": 100,
    "none": 200,
    "random": 50,
    "scratch": 60,
}
TEXTURES, TEXTURE_SIDE = {"fine": 400, "spot": 200, "scratch": 200}, 512
PCB = ("open", "short", "mousebite", "spur", "copper", "pin-hole")  # in the order of their numbers, from 1
PCB_SIDE, PCB_EACH = 64, 300
MIDDLE = (SIDE - 1) / 2
Y, X = np.mgrid[:SIDE, :SIDE] - MIDDLE
RADIUS, ANGLE = np.hypot(Y, X) / MIDDLE, np.arctan2(Y, X)


def draw_wafer(kind, rng):
    """uint8 (SIDE, SIDE): 0 beside the wafer, 128 a good die, 255 one that failed."""
    fails = np.full((SIDE, SIDE), rng.uniform(0.02, 0.12))
    strength, towards = rng.uniform(0.45, 0.95), rng.uniform(-np.pi, np.pi)
    away = np.abs(np.angle(np.exp(1j * (ANGLE - towards))))
    if kind == "center":
        fails += strength * _blob(rng, rng.uniform(0, 0.15), towards, rng.uniform(4, 8))
    elif kind == "loc":
        fails += strength * _blob(rng, rng.uniform(0.35, 0.65), towards, rng.uniform(2.5, 5))
    elif kind == "donut":
        fails += strength * _ring(rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.16))
    elif kind == "edge-loc":
        fails += strength * _ring(0.95, 0.12) * np.exp(-((away / rng.uniform(0.2, 0.6)) ** 2))
    elif kind == "edge-ring":
        fails += strength * _ring(0.97, rng.uniform(0.05, 0.1)) * (away < rng.uniform(2.2, 3.2))
    elif kind == "random":
        fails += rng.uniform(0.2, 0.45)
    elif kind == "scratch":
        turn = towards + rng.uniform(-1.5, 1.5) * np.linspace(0, 1, 200)
        steps = rng.uniform(0.3, 0.7) * SIDE / 200 * np.stack([np.sin(turn), np.cos(turn)])
        y, x = (rng.uniform(0.2, 0.8, (2, 1)) * SIDE + steps.cumsum(1)).astype(int)
        inside = (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)
        fails[y[inside], x[inside]] = strength
    dies = np.where(rng.random((SIDE, SIDE)) < fails, 255, 128)
    return np.where(RADIUS <= 1, dies, 0).astype(np.uint8)


def _blob(rng, radius, towards, size):
    dy, dx = Y - radius * MIDDLE * np.sin(towards), X - radius * MIDDLE * np.cos(towards)
    turn, size = rng.uniform(0, np.pi), size * rng.uniform(0.7, 1.4)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return np.exp(-((along / (1.3 * size)) ** 2 + (across / size) ** 2) / 2)


def _ring(radius, width):
    return np.exp(-(((RADIUS - radius) / width) ** 2))


def draw_texture(kind, rng):
    """uint8 (TEXTURE_SIDE, TEXTURE_SIDE): grain in uneven light, with one defect anywhere or none."""
    shape = (TEXTURE_SIDE, TEXTURE_SIDE)
    grain = gaussian_filter(rng.normal(size=shape), (rng.uniform(1.5, 2.5), rng.uniform(3, 5)))
    image = 120 + grain / grain.std() * 18 + rng.normal(size=shape) * 6
    image += gaussian_filter(rng.normal(size=shape), 60) * 400
    y, x = rng.uniform(40, TEXTURE_SIDE - 40, 2)
    defect = Image.new("L", shape)
    if kind == "spot":
        across, along = rng.uniform(8, 14, 2)
        ImageDraw.Draw(defect).ellipse((x - across, y - along, x + across, y + along), fill=255)
        image -= gaussian_filter(np.asarray(defect) / 255, 1) * rng.uniform(55, 75)
    elif kind == "scratch":
        half, turn = rng.uniform(20, 50), rng.uniform(0, np.pi)
        dx, dy = half * np.cos(turn), half * np.sin(turn)
        ImageDraw.Draw(defect).line((x - dx, y - dy, x + dx, y + dy), fill=255, width=4)
        image += gaussian_filter(np.asarray(defect) / 255, 0.8) * rng.uniform(60, 80)
    return image.clip(0, 255).astype(np.uint8)


def save(image, folder, i):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{i:04d}.png")


def sort_cells(clone, folder):
    """Copy the cells of the extreme probabilities of a defect, 0 and 1, to a folder each."""
    images = clone / "src/elpv_dataset/data"
    for line in (images / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        if float(probability) in (0, 1):
            place = folder / ("defective" if float(probability) else "functional")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / name, place)


def cut_defects(clone, folder):
    """Write squares around PCB_EACH defects of each kind, drawn with seed 0."""
    found = {kind: [] for kind in PCB}
    for boxes in sorted((clone / "PCBData").glob("*/*_not/*.txt")):
        board = boxes.parent.parent / boxes.parent.name.removesuffix("_not") / f"{boxes.stem}_test.jpg"
        for line in boxes.read_text().replace(",", " ").splitlines():
            *box, kind = map(int, line.split())
            found[PCB[kind - 1]].append((board, box))
    rng, half = random.Random(0), PCB_SIDE // 2
    for kind, defects in found.items():
        for i, (board, (left, top, right, bottom)) in enumerate(rng.sample(defects, PCB_EACH)):
            image = np.asarray(Image.open(board).convert("L"))
            y, x = (top + bottom) // 2, (left + right) // 2
            y, x = (min(max(n, half), side - half) for n, side in zip((y, x), image.shape))
            save(image[y - half : y + half, x - half : x + half], folder / kind, i)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if it is not there")
    for name in ("cells", "signs", "pcb", "bricks", "coffee"):
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE", help=f"make {name} from this clone")
    args = parser.parse_args(argv)
    folder, digits = args.folder, load_digits()
    if args.cells:
        sort_cells(args.cells, folder / "cells")
    whole = {"signs": "Dataset", "bricks": "dataset", "coffee": "classification/dataset/symptom"}
    for name, place in whole.items():
        if clone := getattr(args, name):
            shutil.copytree(clone / place, folder / name, dirs_exist_ok=True)
    if args.pcb:
        cut_defects(args.pcb, folder / "pcb")
    for i, (image, digit) in enumerate(zip(digits.images, digits.target)):
        save((image * 255 / 16).round().astype(np.uint8), folder / "digits" / str(digit), i)
    for kind, count in WAFERS.items():
        for i in range(count):
            rng = np.random.default_rng([zlib.crc32(kind.encode()), i])
            save(draw_wafer(kind, rng), folder / "wafers" / kind, i)
    rng = np.random.default_rng(5)
    for kind, count in TEXTURES.items():
        for i in range(count):
            save(draw_texture(kind, rng), folder / "textures" / kind, i)


if __name__ == "__main__":
    main()
