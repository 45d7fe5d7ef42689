"""Figures of the report, drawn from the run record as vector graphics."""

import io
import tempfile
from functools import lru_cache

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import font_manager

from report.source import ROOT

# Told apart by the colour-blind and in grey: Okabe and Ito's blue and vermilion, solid and dashed.
TRAIN = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.4}
TEST = {"color": "#D55E00", "linestyle": (0, (4, 1.5)), "linewidth": 1.4}


@lru_cache
def use_report_type():
    """Make matplotlib set text in the report's own face (its files are WOFF2, matplotlib reads TTF)."""
    from fontTools.ttLib import TTFont

    for style in ("400-normal", "400-italic", "700-normal"):
        font = TTFont(ROOT / "templates" / "fonts" / f"stix-two-text-latin-{style}.woff2")
        font.flavor = None
        with tempfile.NamedTemporaryFile(suffix=".ttf", delete=False) as file:
            font.save(file)
        font_manager.fontManager.addfont(file.name)
    plt.rcParams.update(
        {
            "font.family": ["STIX Two Text", "DejaVu Sans"],
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "svg.hashsalt": "report",
        }
    )


def as_svg(figure):
    """The figure as SVG text, the same bytes each time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.02)
    plt.close(figure)
    return text.getvalue()


def save_pdf(figure, path):
    """The figure as a PDF file with its text as text, the same bytes each time."""
    with plt.rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, metadata={"CreationDate": None}, bbox_inches="tight", pad_inches=0.02)
    plt.close(figure)


def draw_history(history, baseline):
    """Loss and accuracy after each epoch, training and test."""
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None  # a line of one point would not show
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 2.35), layout="constrained")
    left.plot(epochs, [row["train_loss"] for row in history], label="training", marker=marker, **TRAIN)
    left.plot(epochs, [row["test_loss"] for row in history], label="test", marker=marker, **TEST)
    left.set(title="Loss", xlabel="epoch")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    for side, style in (("train", TRAIN), ("test", TEST)):
        values = [100 * row[f"{side}_accuracy"] for row in history]
        right.plot(epochs, values, marker=marker, **style)
    right.axhline(100 * baseline, color="0.45", linewidth=0.8, linestyle=":")
    right.annotate(
        f"{baseline:.0%} baseline",
        (1, 100 * baseline),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        color="0.35",
        fontsize=8,
    )
    right.set(title="Accuracy (%)", xlabel="epoch", ylim=(0, 102))
    return figure


def draw_confusion_matrix(matrix, class_names):
    """Counts, true classes in rows; the shade is the share of the row."""
    matrix = np.asarray(matrix)
    n = len(class_names)
    side = max(2.6, 0.42 * n + 0.6)
    figure, axes = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(n):
        for j in range(n):
            if matrix[i, j]:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, matrix[i, j], ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(n), class_names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), class_names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
