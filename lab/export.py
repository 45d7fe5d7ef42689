"""`run.py --onnx`: the finished model as one ONNX file, which other programs run without PyTorch."""

import contextlib
import io
import json
import logging
import warnings

import torch

import data
import train
from lab.bundle import file_name
from lab.errors import InputError, said
from lab.files import write_whole
from lab.prediction import load_bundle

NEAR = 1e-4  # how far a confidence may be from PyTorch's


class Prepared(torch.nn.Module):
    """From pixels to confidences, as train.predict and lab.scores have it: uint8 (b, channels, side, side) ->
    float32 (b, classes)."""

    def __init__(self, model, recipe):
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, pixels):
        images = data.normalize(pixels.float() / 255, self.recipe.standardize)
        views = train.views_of(images, self.recipe) if self.recipe.test_views else [images]
        return torch.stack([self.model(view) for view in views]).mean(0).softmax(-1)


@contextlib.contextmanager
def _quietly():
    """The exporter warns of what does not concern a user, and prints its steps."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def convert(program, pixels, opset):
    """The ONNX model of a Prepared, of any number of images such as `pixels`. InputError for an opset that
    there is not."""
    try:
        with _quietly():
            made = torch.onnx.export(
                program, (pixels,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["pixels"], output_names=["confidences"], opset_version=opset, verbose=False,
            )  # fmt: skip
            found = made.model_proto
    except Exception as error:  # the exporter's own kinds are many
        raise InputError(f"--onnx {opset}: PyTorch cannot write this opset ({said(error)})") from None
    there = next(entry.version for entry in found.opset_import if entry.domain in ("", "ai.onnx"))
    if there != opset:
        raise InputError(f"--onnx {opset}: PyTorch can only write opset {there} here; try --onnx {there}")
    return found


def describe(model, record):
    """Put into the ONNX model what its user needs to know."""
    recipe, facts = record.recipe.values, record.data
    colour, side = "grey" if recipe.channels == 1 else "RGB", recipe.image_size
    how = f"{colour}, resized to {side} x {side}, bilinear"
    if facts.pixel_range:
        how = "of {} to {} scaled to 0 to 255, ".format(*facts.pixel_range) + how
    about = {
        "classes": json.dumps(facts.classes, ensure_ascii=False),
        "pixels": f"uint8 (batch, channels, height, width): {how}; all else is done inside",
        "confidences": "float32 (batch, classes): softmax of the logits, averaged over views",
    }
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)


def largest_difference(content, program, pixels):
    """The largest difference of a confidence between onnxruntime and PyTorch, for one image and for all."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for part in (pixels[:1], pixels):
        (found,) = session.run(None, {"pixels": part.numpy()})
        with torch.no_grad():
            differences.append(float((torch.from_numpy(found) - program(part)).abs().max()))
    return max(differences)


def write_onnx(folder, student_id, opset):
    """Write the model of a finished bundle beside it -> (path, difference). InputError where it cannot be
    written, or answers otherwise than PyTorch."""
    record, model = load_bundle(folder, student_id)
    recipe = record.recipe.values
    program = Prepared(model, recipe).eval()
    shape = (5, recipe.channels, recipe.image_size, recipe.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = convert(program, pixels[:2], opset)
    describe(made, record)
    content = made.SerializeToString()
    if (difference := largest_difference(content, program, pixels)) > NEAR:
        raise InputError(
            f"the ONNX file's confidences differ by {difference:.1g} from PyTorch's: not written"
        )
    path = folder / file_name(student_id, "onnx")
    write_whole(path, content)
    return path, difference
