"""Weights from a stranger's file, and the model that they belong to."""

import hashlib
import pickle
import zipfile

import torch

import train
from lab.errors import InputError, said
from lab.machine import model_of_sizes

WEIGHTS_BYTES = 2**31


def load_weights(path):
    """({name: tensor} of a .pth, their digest). InputError where it is no plain state_dict."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > WEIGHTS_BYTES:
            raise ValueError("it is too large")
        weights, digest = torch.load(path, map_location="cpu", weights_only=True), hashlib.sha256()
        for name, tensor in weights.items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    except pickle.UnpicklingError:  # PyTorch's own words end with how to open it all the same
        why = "is damaged or holds more than tensors: do not open it otherwise"
        raise InputError(f"the .pth {why}") from None
    except Exception as error:
        raise InputError(f"the .pth is not plain weights of torch.save ({said(error)})") from None
    return weights, digest.hexdigest()


def fit_model(weights, recipe, num_classes):
    """Our ViT with these weights. InputError where they are not such a model's."""
    needed = sum(p.numel() for p in model_of_sizes(recipe, num_classes).parameters())
    if (there := sum(tensor.numel() for tensor in weights.values())) != needed:
        raise InputError(f"the .pth has {there} parameters, the settings in the code make {needed}")
    model = train.make_model(recipe, num_classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the .pth does not fit the settings in the code ({said(error)})") from None
    return model
