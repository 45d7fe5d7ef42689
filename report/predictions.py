"""The page of `run.py --predict`: pictures with what the model says of them, in one file."""

import io

import numpy as np
from PIL import Image

from lab.files import write_whole
from report.page import data_url, templates

TOP = 3  # classes named beside a picture


def _glow(rollout, size):
    """A rollout (rows, columns), largest 1, of a picture of this (width, height), as a PNG that the browser
    lays over it: the more opaque, the more attention."""
    pixels = np.zeros((*rollout.shape, 4), np.uint8)
    pixels[..., :3] = (255, 120, 0)
    pixels[..., 3] = (rollout * 200).round()
    file = io.BytesIO()
    # A quarter as fine as the picture, and of its shape: it was squashed to a square for the model.
    shape = [max(1, round(side / 4)) for side in size]
    Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR).save(file, "PNG")
    return data_url(file.getvalue(), "image/png")


def _tile(answer, classes):
    ranked = sorted(zip(answer.confidences, classes), reverse=True)[:TOP]
    return {
        "name": answer.name,
        "predicted": answer.predicted,
        "class": classes.index(answer.predicted),
        "unsure": answer.unsure,
        "ranked": [(name, confidence) for confidence, name in ranked],
        "picture": data_url(answer.picture, "image/jpeg") if answer.picture else "",
        "glow": _glow(answer.rollout, answer.size) if answer.picture else "",
    }


def write_predictions(outcome, path):
    """Write the page of a lab.prediction.Outcome."""
    template = templates(autoescape=True).get_template("predictions.html.j2")
    tiles = [_tile(answer, outcome.classes) for answer in outcome.answers]
    write_whole(path, template.render(outcome=outcome, tiles=tiles))
