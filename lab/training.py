"""The graded core's training, wrapped: a log, progress, advice.

Nothing here changes what train.py computes.
"""

import contextlib
import copy
import dataclasses
import io
import itertools
import time
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

import train
from data import BatchLoader
from lab.errors import told
from lab.machine import keep_freed_memory
from lab.steps import capture, faster, without_compiler

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Setup:
    """All that a training needs. `precision`: fp32, bf16 or fp16; `shared`: the model on several
    processes (lab.distributed)."""

    model: torch.nn.Module
    optimizers: list
    schedulers: list
    scaler: torch.amp.GradScaler
    train_loader: BatchLoader
    test_loader: BatchLoader
    device: torch.device
    precision: str
    shared: torch.nn.Module | None = None


def on_device(split, device):
    """The data.Split with its pixels on a CUDA device, where they fill at most half of its free memory."""
    if device.type != "cuda" or split.pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return split
    moved = copy.copy(split)  # the other side, and studies, keep theirs where it is
    moved.pixels, moved.rows = split.pixels[split.rows].to(device), torch.arange(len(split))
    return moved


def prepare(train_split, test_split, recipe, device, precision, *, model=None, optimizers=None):
    """The Setup of a training on two data.Splits: by default of the recipe's ViT with its optimizers."""
    keep_freed_memory()
    without_compiler()
    if model is None:
        model = train.make_model(recipe, len(train_split.classes))
    model.to(device)
    optimizers = faster(optimizers or train.make_optimizers(model, recipe))
    train_loader = BatchLoader(on_device(train_split, device), recipe, device, train=True)
    test_loader = BatchLoader(on_device(test_split, device), recipe, device)
    schedulers = train.make_schedulers(optimizers, recipe, len(train_loader))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Setup(model, optimizers, schedulers, scaler, train_loader, test_loader, device, precision)


def try_steps(setup, recipe, processes=1):
    """Two training steps on copies: how many seconds the whole training will take, about, where so many
    processes share its batches. Nothing that the training draws from changes."""
    model = copy.deepcopy(setup.model)
    optimizers = faster(train.make_optimizers(model, recipe))
    loader = BatchLoader(setup.train_loader.dataset, shown_once(recipe), setup.device, train=True)
    with torch.random.fork_rng(), told(advice(recipe)):  # dropout draws from it
        for batch in itertools.islice(loader, 2):  # the first step is slower than all others
            shares = [values[: -(-len(values) // processes)] for values in batch]
            seconds = seconds_of_step(setup, shares, recipe, model, optimizers) / len(batch[0])
    # Scoring an image takes the forward pass alone, about a third of a step.
    images = len(setup.train_loader.dataset) + len(setup.test_loader.dataset) / 3
    return seconds * images * recipe.epochs


def shown_once(recipe):
    """The recipe for the images of a training loader, which are repeated already."""
    return dataclasses.replace(recipe, repeats=1, balance=0.0)


def seconds_of_step(setup, batch, recipe, model=None, optimizers=None):
    """The seconds of a training step on one batch, of the setup's model unless another is given."""
    single = DataLoader(TensorDataset(*batch), len(batch[0]))
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train.train_epoch(
            model or setup.model, optimizers or setup.optimizers, single, [],
            precision=DTYPES[setup.precision], clip_norm=recipe.clip_norm,
            label_smoothing=recipe.label_smoothing,
        )  # fmt: skip
    return time.perf_counter() - start


class Ticking:
    """A loader that calls `tick` after each of its batches was used."""

    def __init__(self, loader, tick):
        self.loader, self.tick, self.dataset = loader, tick, loader.dataset

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            yield batch
            self.tick()


def advice(recipe):
    """What to try where the training went astray: rates below the recipe's peak ones."""
    rates = f"--set learning_rate={recipe.learning_rate / 3:.0e}"
    if recipe.muon_learning_rate:
        rates = f"--set muon_learning_rate={recipe.muon_learning_rate / 3:.0e} {rates}"
    return f"try {rates}, a longer warm-up, or --precision fp32"


def record_passes(setup, recipe):
    """Record the passes of a training step where that can be done: on a GPU, in one process."""
    # A norm over the batch has buffers, which the recording would change.
    if setup.device.type == "cuda" and not setup.shared and not any(True for _ in setup.model.buffers()):
        shape = (recipe.batch_size, *setup.train_loader.dataset.pixels.shape[1:])
        capture(setup.model, shape, DTYPES[setup.precision])


def epochs(setup, recipe, *, first=1, log=None, tick=None):
    """Train and yield a train.Epoch after each, from epoch number `first` on.

    What the core prints goes to the text file `log`, or nowhere; `tick` is called after each batch.
    InputError with advice where the loss is no longer a number.
    """
    loader = Ticking(setup.train_loader, tick) if tick else setup.train_loader
    noticed = setup.shared.noticed if setup.shared else contextlib.nullcontext
    record_passes(setup, recipe)
    steps = train.fit(
        setup.shared or setup.model, setup.optimizers, setup.schedulers, loader, setup.test_loader, recipe,
        [], [], scaler=setup.scaler, precision=DTYPES[setup.precision], first_epoch=first,
    )  # fmt: skip
    while True:
        # Around each step alone, so that what the caller prints between two is not caught.
        with contextlib.redirect_stdout(log or io.StringIO()), told(advice(recipe)), noticed():
            epoch = next(steps, None)
        if epoch is None:
            return
        yield epoch


def score(setup, recipe):
    """The logits (n, classes) of the test images as after the last epoch: in float32, over all views."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train.evaluate(setup.model, setup.test_loader, [], recipe)[2]
