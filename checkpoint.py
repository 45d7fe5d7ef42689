"""An interrupted training goes on where its last finished epoch ended: `run.py --resume`.

A checkpoint holds all that the next epoch depends on (model, optimizer, schedule, loss scaling, order
of the images, random numbers) and what the run has said so far. On the CPU the resumed run ends
with the same weights, bit for bit, as one that was never interrupted.
"""

import io
import json

import torch

from recipe import InputError
from record import write_whole

VERSION = 2


class Checkpoint:
    """The state of a training at the end of an epoch, kept in the file `path`.

    `call` is what the run was started with, JSON-ready. `history` has the finished epochs' rows,
    `seconds` is the time they took, `log` the text of their log, to which the training adds.
    """

    def __init__(self, path, call):
        self.path = path
        self.call = call
        self.history = []
        self.seconds = 0.0
        self.log = ""
        self._state = None
        self._parts = None

    @classmethod
    def load(cls, path):
        """The Checkpoint in a file. InputError if it can't be read."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["version"] != VERSION:
                raise InputError(f"{path} was written by another version: run without --resume")
            checkpoint = cls(path, saved["call"])
            checkpoint.history, checkpoint.seconds = saved["history"], saved["seconds"]
            checkpoint.log, checkpoint._state = saved["log"], saved["state"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}): run without --resume") from None
        return checkpoint

    def begin(self, **parts):
        """Take hold of the parts of a training, as train.fit gives them; restore their state if there is
        one. -> epochs done"""
        self._parts = parts
        if self._state is None:
            return 0
        for name in ("model", "optimizer", "scheduler", "scaler"):
            parts[name].load_state_dict(self._state[name])
        loader = parts["loader"]
        loader.generator.set_state(self._state["order"])
        loader.rng.bit_generator.state = json.loads(self._state["mixup"])
        torch.set_rng_state(self._state["random"])
        if self._state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._state["cuda"])
        self._state = None  # its memory
        return len(self.history)

    def save(self, row, seconds):
        """Add an epoch's row, and write the file anew, whole or not at all. OSError if that fails."""
        self.history.append(row)
        loader = self._parts["loader"]
        state = {n: self._parts[n].state_dict() for n in ("model", "optimizer", "scheduler", "scaler")}
        state |= {
            "order": loader.generator.get_state(),
            "mixup": json.dumps(loader.rng.bit_generator.state),  # its numbers are longer than 64 bits
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if loader.device.type == "cuda" else None,
        }
        content = io.BytesIO()  # torch.save into a full disk says nothing that helps
        torch.save(
            {
                "version": VERSION,
                "call": self.call,
                "history": self.history,
                "seconds": self.seconds + seconds,
                "log": self.log,
                "state": state,
            },
            content,
        )
        write_whole(self.path, content.getvalue())
