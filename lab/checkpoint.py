"""An interrupted training goes on where its last finished epoch ended: `run.py --resume`.

A checkpoint holds all that the next epoch depends on (model, optimizers, schedules, loss scaling, order
of the images, random numbers) and what the run has said so far. On the CPU the resumed run ends
with the same weights, bit for bit, as one that was never interrupted.
"""

import hashlib
import io
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from lab.errors import InputError
from lab.files import write_whole
from lab.findings import Findings
from lab.record import Choices, EpochRow, NamedRecipe, Source

MAGIC = b"ViT-checkpoint-A\n"  # and a SHA-256 of all that follows: one flipped bit is found
DIGEST = 32  # bytes


@dataclass
class Start:
    """What a run was started with. `free`: names of hyperparameters still to be fitted to the images.
    `source`: of the images once they are read, its folder as seen from the run folder."""

    recipe: NamedRecipe
    findings: Findings
    precision: str
    name: str | None
    choices: Choices = field(default_factory=Choices)
    free: list[str] = field(default_factory=list)
    source: Source | None = None
    fingerprint: str = ""


def state_of(setup):
    """All that changes in a training.Setup, and the random numbers: a dict, as torch.save takes it."""
    loader = setup.train_loader
    return {
        "model": setup.model.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in setup.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in setup.schedulers],
        "order": loader.generator.get_state(),
        "mixup": json.dumps(loader.rng.bit_generator.state),  # its numbers are longer than 64 bits
        "random": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if setup.device.type == "cuda" else None,
    }


def put_state(setup, state):
    """Put what `state_of` returned into a training.Setup of the same recipe."""
    setup.model.load_state_dict(state["model"])
    setup.scaler.load_state_dict(state["scaler"])
    for part, saved in zip(setup.optimizers + setup.schedulers, state["optimizers"] + state["schedulers"]):
        part.load_state_dict(saved)
    setup.train_loader.generator.set_state(state["order"])
    setup.train_loader.rng.bit_generator.state = json.loads(state["mixup"])
    torch.set_rng_state(state["random"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@dataclass
class Checkpoint:
    """The state of a training at the end of an epoch, kept in the file `path`.

    `history` has an EpochRow for each finished epoch, `seconds` is the time they took, `log` the text of
    their log.
    """

    path: Path
    start: Start
    history: list[EpochRow] = field(default_factory=list)
    seconds: float = 0.0
    log: str = ""
    state: dict | None = None  # as read from the file, until it is put back

    @classmethod
    def load(cls, path):
        """The Checkpoint in a file. InputError if it is damaged or of another version."""
        try:
            content = path.read_bytes()
            if not content.startswith(MAGIC):
                raise ValueError("it is not a checkpoint, or of another version")
            body = content[len(MAGIC) + DIGEST :]
            if hashlib.sha256(body).digest() != content[len(MAGIC) : len(MAGIC) + DIGEST]:
                raise ValueError("its content has changed")
            # weights_only: a checkpoint is a pickle, and one from a stranger could run code.
            saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
            start = msgspec.json.decode(saved.pop("start"), type=Start)
            history = msgspec.json.decode(saved.pop("history"), type=list[EpochRow])
            return cls(path, start, history, **saved)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(f"cannot go on from {path} ({error}): run without --resume") from None

    def restore(self, setup):
        """Put the saved state into a training.Setup. -> the number of epochs done"""
        state, self.state = self.state, None  # its memory
        if state is None:
            return 0
        put_state(setup, state)
        return len(self.history)

    def save(self, setup, seconds):
        """Write the file anew after an epoch, whole or not at all. `seconds`: those of this process.

        OSError if that fails.
        """
        saved = {
            "start": msgspec.json.encode(self.start),
            "history": msgspec.json.encode(self.history),
            "seconds": self.seconds + seconds,
            "log": self.log,
            "state": state_of(setup),
        }
        body = io.BytesIO()  # torch.save into a full disk says nothing that helps
        torch.save(saved, body)
        content = body.getvalue()
        write_whole(self.path, MAGIC + hashlib.sha256(content).digest() + content)
