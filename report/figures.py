"""Figures of the report, drawn from the run record as vector graphics, in the report's own type.

Each function returns a matplotlib figure of its final size: no text in it is smaller than 7 points.
Call `use_report_type` first.
"""

import atexit
import io
import shutil
import tempfile
import textwrap
from functools import lru_cache

import matplotlib
import numpy as np
from einops import rearrange
from rich.cells import cell_len

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from report import fonts
from report.answers import NETWORKS, changed_to, points
from report.page import shorten

WIDTH = 6.5  # inches: the report's text width
SMALL = 7.5  # points
NAMED = 40  # classes: of more, no figure could name each and fit on a page

# Told apart by the colour-blind and in grey: Okabe and Ito's blue and vermilion, solid and dashed.
BLUE, VERMILION = "#0072B2", "#D55E00"
TRAIN = {"color": BLUE, "linestyle": "-", "linewidth": 1.4}
TEST = {"color": VERMILION, "linestyle": (0, (4, 1.5)), "linewidth": 1.4}
HATCHED = {"color": "#f3c6a5", "edgecolor": VERMILION, "linewidth": 0.5, "hatch": "////"}
LINES = {  # of the networks that are compared
    "vit": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "cnn": {"color": VERMILION, "marker": "s", "linestyle": (0, (4, 1.5))},
    "resnet18": {"color": "#006b4f", "marker": "^", "linestyle": (0, (5, 1, 1, 1))},
}
STYLE = {
    "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5,
    "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.constrained_layout.use": True, "image.interpolation": "nearest",
    "text.parse_math": False,  # a class may be called $x$
    "svg.hashsalt": "report",
}  # fmt: skip


@lru_cache
def use_report_type(text=""):
    """Make matplotlib set text in the report's faces, with those that the letters of `text` need."""
    folder = tempfile.mkdtemp(prefix="report-fonts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = fonts.write_fonts(text, folder)
    for _, path in files:
        font_manager.fontManager.addfont(path)
    families = dict.fromkeys(family for family, _ in files)
    plt.rcParams.update(STYLE | {"font.family": [*families, "DejaVu Sans"]})


def as_svg(figure):
    """The figure as SVG text, the same bytes each time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return text.getvalue()


def _no_axes(axes):
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _number_tiles(axes, tiles, gap, rows, columns, names):
    """Number the rows and columns of `_tiled` tiles from 1; `names`: what they are called."""
    _no_axes(axes)
    h, w = tiles.shape[2:]
    axes.set_yticks(np.arange(len(rows)) * (h + gap) + (h - 1) / 2, np.add(rows, 1), fontsize=SMALL)
    axes.set_xticks(np.arange(len(columns)) * (w + gap) + (w - 1) / 2, np.add(columns, 1), fontsize=SMALL)
    axes.tick_params(length=0, pad=2)
    axes.set_ylabel(names[0], fontsize=8, labelpad=3)
    axes.set_xlabel(names[1], fontsize=8, labelpad=2)


def _thin(bar):
    """Make a colour bar as light as the figures' other lines."""
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.5)
    bar.outline.set_linewidth(0.4)


def _show(axes, image, **settings):
    """Pixels (h, w, 1 or 3) as a picture."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", **settings)


def draw_counts(counts):
    """{"train": {class: n}, "test": {class: n}} as bars; many classes are sorted and go without names."""
    names = list(counts["train"])
    if len(names) > NAMED:
        return _draw_many_counts(counts)
    train, test = ([counts[side][name] for name in names] for side in ("train", "test"))
    figure, axes = plt.subplots(figsize=(WIDTH, 0.55 + 0.17 * len(names)))
    places = range(len(names))
    axes.barh(places, train, height=0.72, color=BLUE, label="training")
    bars = axes.barh(places, test, left=train, height=0.72, label="test", **HATCHED)
    axes.bar_label(bars, [f"{a} + {b}" for a, b in zip(train, test)], padding=3, fontsize=SMALL)
    widest = max(a + b for a, b in zip(train, test))
    axes.set_yticks(places, [shorten(name, 30) for name in names], fontsize=8)
    axes.set(xticks=[], xlim=(0, 1.1 * widest), ylim=(len(names) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_many_counts(counts):
    pairs = np.array(list(zip(counts["train"].values(), counts["test"].values())))
    train, test = pairs[np.argsort(-pairs.sum(axis=1), kind="stable")].T
    ranks = np.arange(1, len(train) + 1)
    figure, axes = plt.subplots(figsize=(WIDTH, 2.2))
    # Areas, not bars: hundreds of bars make a moiré of hairlines.
    axes.fill_between(ranks, train, step="mid", color=BLUE, linewidth=0, label="training")
    axes.fill_between(ranks, train, train + test, step="mid", label="test", **HATCHED)
    axes.set(xlabel="classes, largest first", ylabel="images", xlim=(0.5, len(ranks) + 0.5), ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_history(history, baseline):
    """Loss and accuracy after each epoch, training and test."""
    epochs = [row.epoch for row in history]
    marker = "o" if len(epochs) == 1 else None  # a line of one point would not show
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.35))
    for side, name, style in (("train", "training", TRAIN), ("test", "test", TEST)):
        losses = [getattr(row, f"{side}_loss") for row in history]
        left.plot(epochs, losses, label=name, marker=marker, **style)
        accuracies = [100 * getattr(row, f"{side}_accuracy") for row in history]
        right.plot(epochs, accuracies, marker=marker, **style)
    left.set(title="Loss", xlabel="epoch", ylim=(0, None))
    left.legend()
    right.axhline(100 * baseline, color="0.45", linewidth=0.8, linestyle=":")
    right.annotate(
        f"{baseline:.0%} baseline", (1, 100 * baseline), (0, -3), ("axes fraction", "data"), "offset points",
        ha="right", va="top", color="0.35", fontsize=8,
    )  # fmt: skip
    right.set(title="Accuracy (%)", xlabel="epoch", ylim=(0, 102))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def confusion_words(matrix, class_names):
    """The confusion matrix in words, with all its numbers; of many classes only how many are right."""
    start, n = f"Confusion matrix of {np.sum(matrix)} test images", len(class_names)
    if n > NAMED:
        return f"{start} in {n} classes: {np.trace(matrix)} on the diagonal."
    rows = []
    for i, (name, row) in enumerate(zip(class_names, matrix)):
        taken = [f", {n} taken for {class_names[j]}" for j, n in enumerate(row) if n and j != i]
        rows.append(f"{name}: {row[i]} of {sum(row)} right{''.join(taken)}")
    return f"{start}. {'; '.join(rows)}."


def draw_confusion_matrix(matrix, class_names):
    """Counts, true classes in rows; the shade is the share of the row. Long names lose their middle. Many
    classes are numbered, and their counts are left to the shade."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    n = len(class_names)
    if n > NAMED:
        return _draw_many_confusions(shares)
    size = 9 if n <= 10 else 8 if n <= 20 else 7
    cell = max(0.145, min(0.36, 4.0 / n))  # inches: a number of two digits fits
    labels = [shorten(name, 24) for name in class_names]
    margin = max(map(cell_len, labels)) * 0.052 * size / 8 + 0.55
    width, height = n * cell + margin + 0.35, n * cell + 0.72 * margin + 0.35
    figure, axes = plt.subplots(figsize=(min(WIDTH, width), height))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(matrix):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, matrix[i, j], ha="center", va="center_baseline", color=colour, fontsize=size)
    turned = {"rotation": 45, "ha": "right"} if n <= 12 else {"rotation": 90, "ha": "right", "va": "center"}
    axes.set_xticks(range(n), labels, rotation_mode="anchor", fontsize=min(size, 8.5), **turned)
    axes.set_yticks(range(n), labels, fontsize=min(size, 8.5))
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _draw_many_confusions(shares):
    n = len(shares)
    figure, axes = plt.subplots(figsize=(5.6, 5.0))
    # From 1, as a person counts, and over all of it: the classes stand in the order of the CSV's columns.
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=(0.5, n + 0.5, n + 0.5, 0.5))
    axes.set(xlabel="predicted class, by number", ylabel="true class, by number")
    axes.spines[["top", "right"]].set_visible(True)
    _thin(figure.colorbar(image, shrink=0.6, label="share of the true class"))
    return figure


def draw_calibration(calibration):
    """Reliability diagram: accuracy by confidence, and how many images each bin holds."""
    bins = [row for row in calibration.bins if row.images]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    width = 1 / len(calibration.bins)
    places = [row.low + width / 2 for row in bins]
    left.bar(places, [row.accuracy for row in bins], width=0.92 * width, color=BLUE, label="accuracy")
    left.plot([0, 1], [0, 1], color="0.3", linewidth=0.9, linestyle="--", label="perfect")
    left.plot(
        [row.confidence for row in bins], [row.accuracy for row in bins], linestyle="none",
        marker="o", markersize=4.5, color="white", markeredgecolor="black", label="mean confidence",
    )  # fmt: skip
    left.set(title="Reliability", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3)
    bars = right.bar(places, [row.images for row in bins], width=0.92 * width, color="0.6")
    right.bar_label(bars, fontsize=SMALL, padding=1.5)
    right.set(title="Images", xlabel="confidence", xlim=(0, 1))
    right.margins(y=0.12)
    for axes in (left, right):
        axes.set_xticks(np.linspace(0, 1, 6))
    return figure


def draw_diary(diary):
    """Paired differences of validation accuracy with intervals; the hyperparameter of most effect first."""
    rows = [row for row in diary.rows if row.difference is not None]
    order = [row.name for row in sorted(rows, key=lambda row: -abs(row.difference))]
    rows.sort(key=lambda row: (order.index(row.name), row.difference))
    half = -(-len(rows) // 2)
    columns = [part for part in (rows[:half], rows[half:]) if part]
    figure, panels = plt.subplots(1, len(columns), figsize=(WIDTH, 0.75 + 0.165 * half), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.1)  # the numbers of one panel from the names of the next
    for axes, part in zip(panels[0], columns):
        _draw_effects(axes, part)
        axes.set_ylim(half - 0.4, -0.6)
    return figure


def _draw_effects(axes, rows):
    """One panel of the diary: a line for each row, its interval, its mean, and the mean as a number."""
    means = [100 * row.difference for row in rows]
    ends = [100 * end for row in rows for end in (row.difference, row.low, row.high) if end is not None]
    # One run that went astray widens its interval beyond all others: it may leave the panel.
    reach = 1.2 * max(1.0, *map(abs, means))
    low = min(-0.5, max(min(ends), min(means) - reach))
    high = max(0.5, min(max(ends), max(means) + reach))
    axes.axvline(0, color="0.45", linewidth=0.8, linestyle=":")
    for place, (row, mean) in enumerate(zip(rows, means)):
        colour = "0.35" if row.within_noise else BLUE if mean > 0 else VERMILION
        if row.low is not None:
            axes.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=1.1)
            beyond = [(low, "<")] * (100 * row.low < low) + [(high, ">")] * (100 * row.high > high)
            for end, mark in beyond:  # the interval goes on
                axes.plot(end, place, mark, markersize=4, color=colour)
        face = "white" if row.within_noise else colour
        axes.plot(mean, place, "o", markersize=4.2, color=colour, markerfacecolor=face, zorder=3)
        axes.text(
            1.01, place, points(row.difference), transform=axes.get_yaxis_transform(),
            va="center_baseline", fontsize=SMALL, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [changed_to(row) for row in rows], fontsize=SMALL)
    axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_xlabel("validation accuracy, points", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.spines["left"].set_visible(False)


def draw_shares(comparison):
    """Errors of each network on all or few training images, mean and standard deviation over seeds."""
    figure, axes = plt.subplots(figsize=(6.0, 2.6))
    counts = sorted({row.train_images for row in comparison.rows if row.runs})
    for name, style in LINES.items():
        for equal in ("steps", "time"):
            rows = [(r.train_images, 100 * (1 - r.accuracy), 100 * (r.sd or 0)) for r in comparison.rows
                    if (r.model, r.equal) == (name, equal) and r.runs]  # fmt: skip
            if rows:
                look = {"markersize": 4.5, "linewidth": 1.3, "capsize": 2.5, **style}
                look |= {"linestyle": ":", "markerfacecolor": "white"} if equal == "time" else {}
                label = NETWORKS[name] if name == "vit" else f"{NETWORKS[name]}, equal {equal}"
                images, errors, spread = zip(*sorted(rows))
                below = [min(sd, error) for error, sd in zip(errors, spread)]
                axes.errorbar(images, errors, (below, spread), label=label, **look)
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)  # linear to 1 %, as 0 is possible; then by factors
    ticks = (0, 1, 2, 5, 10, 20, 50, 100)
    axes.set_yticks(ticks, map(str, ticks))
    axes.set_yticks([], minor=True)
    axes.set_ylim(0, min(110, 1.3 * axes.dataLim.y1))
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training images", ylabel="test errors (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_rollout(pictures, rollout, entries):
    """The pictures, the attention rollout over their patches, and the pictures lit by it.

    pictures (k, h, w, c) uint8; rollout (k, rows, columns), each summing to one; entries: the k
    predictions. The middle row is in units of an even share, on one scale for all pictures.
    """
    k = len(pictures)
    figure, axes = plt.subplots(3, k, figsize=(min(WIDTH, 0.75 + k * 0.94), 3.05), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    times = rollout * rollout[0].size  # 1: an even share
    low, high = times.min(), times.max()
    for i, entry in enumerate(entries):
        height, width = pictures[i].shape[:2]
        _show(axes[0, i], pictures[i], vmin=0, vmax=255)
        shown = axes[1, i].imshow(times[i], cmap="cividis", vmin=low, vmax=high)
        light = (times[i] - times[i].min()) / max(np.ptp(times[i]), 1e-9)
        # Each pixel takes the light of its patch: repeated, or picked where the picture is coarser.
        rows = np.arange(height) * light.shape[0] // height
        columns = np.arange(width) * light.shape[1] // width
        lit = pictures[i] / 255 * (0.12 + 0.88 * light[rows][:, columns, None])
        _show(axes[2, i], lit, vmin=0, vmax=1)
        title = shorten(entry.true if entry.true == entry.predicted else f"✗ {entry.true}", 28)
        title = textwrap.fill(title, 16 * len(title) // max(1, cell_len(title)))
        axes[0, i].set_title(title, fontsize=SMALL, fontweight="normal", pad=3)
    for part in axes.flat:
        _no_axes(part)
    for row, name in zip(axes[:, 0], ("input", "rollout", "input lit\nby rollout")):
        row.set_ylabel(name, fontsize=8)
    _thin(figure.colorbar(shown, ax=axes[1, :], fraction=0.03, pad=0.01))
    return figure


def _tiled(tiles, gap):
    """Tiles (r, c, h, w, ...) as one array with `gap` cells of NaN between them."""
    around = [(0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (tiles.ndim - 4)]
    spaced = np.pad(tiles.astype(float), around, constant_values=np.nan)
    return rearrange(spaced, "r c h w ... -> (r h) (c w) ...")[:-gap, :-gap]


def draw_distance(distance, even):
    """Mean attention distance of each head (depth, heads), in pixels, and that of even attention."""
    depth, heads = distance.shape
    blocks = np.arange(1, depth + 1)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.85))
    axes.plot(
        np.repeat(blocks, heads), distance.ravel(), linestyle="none", marker="o", markersize=4.5,
        color="none", markeredgecolor=BLUE, markeredgewidth=0.9, label="a head",
    )  # fmt: skip
    marker = "_" if depth == 1 else None  # a line of one point would not show
    axes.plot(blocks, distance.mean(axis=1), label="mean of the heads", marker=marker, markersize=14, **TEST)
    axes.axhline(even, color="0.3", linewidth=0.9, linestyle=":", label="even attention")
    axes.set(xlabel="block", ylabel="distance (pixels)", xlim=(0.5, depth + 0.5))
    axes.set_ylim(0, 1.12 * max(even, distance.max()) or 1)  # one patch: all distances are 0
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_heads(picture, maps, blocks, heads):
    """Attention of the output to each patch of one picture, a map for each block and head.

    picture (h, w, c) uint8; maps (k, m, rows, columns), each summing to one; blocks (k) and heads (m):
    their numbers from 0. In units of an even share, on one logarithmic scale with 1 in its middle.
    """
    k, m, h, w = maps.shape
    times = maps * h * w
    end = max(float(times.max()), 1.1)
    left, right, bottom, top = 1.75, 0.55, 0.07, 0.38  # inches around the maps
    cell = min(0.44, (WIDTH - left - right) / m)
    width, height = left + m * cell + right, bottom + k * cell + top
    figure = plt.figure(figsize=(width, height), layout="none")

    def place(x, y, wide, high):
        return figure.add_axes([x / width, y / height, wide / width, high / height])

    side = min(1.25, k * cell)
    shown = place(0, bottom + k * cell - side, side, side)
    _show(shown, picture, vmin=0, vmax=255)
    _no_axes(shown)
    shown.set_title("input", fontsize=8, fontweight="normal", pad=3)
    axes = place(left, bottom, m * cell, k * cell)
    gap = max(1, round(min(h, w) / 9))
    tiled = _tiled(np.clip(times, 1 / end, end), gap)
    image = axes.imshow(tiled, cmap="cividis", norm=LogNorm(1 / end, end), aspect="auto")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    _number_tiles(axes, maps, gap, blocks, heads, ("block", "head"))
    bar = figure.colorbar(image, cax=place(left + m * cell + 0.1, bottom, 0.09, k * cell))
    most = f"{end:.1f}" if end < 100 else f"{end:.0f}"
    bar.set_ticks([1 / end, 1, end], labels=[f"1/{most}", "1", most])
    bar.set_ticks([], minor=True)
    _thin(bar)
    return figure


def draw_positions(similarity, rows, columns):
    """Cosine similarity of position embeddings: a map over all patches for each chosen patch."""
    # A patch is like itself: with that 1 in the scale, all others would look the same.
    others = similarity.copy()
    i, j = np.ogrid[: len(rows), : len(columns)]
    others[i, j, rows[i], columns[j]] = np.nan
    low, high = (0.0, 1.0) if np.isnan(others).all() else (float(np.nanmin(others)), float(np.nanmax(others)))
    figure, axes = plt.subplots(figsize=(3.1, 2.7), layout="none")
    figure.subplots_adjust(left=0.13, right=0.84, bottom=0.13, top=0.99)
    shown = axes.imshow(_tiled(similarity, 1), cmap="cividis", vmin=low, vmax=high)
    _number_tiles(axes, similarity, 1, rows, columns, ("row", "column of the patch"))
    bar = figure.colorbar(shown, cax=figure.add_axes([0.86, 0.14, 0.02, 0.84]))
    bar.set_ticks([low, high], labels=[f"{end:.2f}".replace("-", "−") for end in (low, high)])
    _thin(bar)
    return figure


def draw_filters(filters):
    """Principal components of the patch embedding's filters: (m, p, p, c), strongest first."""
    m, p, _, c = filters.shape
    tops = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    tiles = np.full((-(-m // 7) * 7, p, p, c), np.nan)
    tiles[:m] = filters / np.where(tops == 0, 1, tops) * 0.5 + 0.5
    whole = np.nan_to_num(_tiled(tiles.reshape(-1, 7, p, p, c), max(1, p // 12)), nan=1.0)
    figure, axes = plt.subplots(figsize=(3.1, 3.1 * whole.shape[0] / whole.shape[1]), layout="none")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    _show(axes, whole, vmin=0, vmax=1)
    _no_axes(axes)
    return figure
