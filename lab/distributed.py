"""One training on several processes, one for each GPU: `torchrun --nproc-per-node 2 run.py ...` starts them.

The first, rank 0, does all that a run does. The others help in its training alone: it sends them the images,
the recipe and where it stands, and they compute their shares of each batch. They read, write and print
nothing. run.py imports this where torchrun has started it.
"""

import contextlib
import datetime
import io
import os
import signal
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data import Split
from lab import checkpoint, training
from lab.errors import InputError, LostProcess
from lab.machine import pixel_store, usable_cores
from lab.recipe import Recipe

CHUNK = 512  # images sent at a time
_at_work = False  # on rank 0: the others are in a training, and hear of nothing else


def join(lead):
    """End this process: on rank 0 with the exit code of `lead()`, a whole run; else with that of its help."""
    try:
        _begin()
    except InputError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _ended)
    try:
        return _help() if dist.get_rank() else lead()
    finally:
        if dist.is_initialized():  # none is lost
            if dist.get_rank() == 0 and not _at_work:
                with contextlib.suppress(RuntimeError):  # one of them is gone
                    _send(None)  # the others are free
            dist.destroy_process_group()


def _lost():
    count = os.environ["WORLD_SIZE"]
    return LostProcess(f"one of the {count} processes of this run was lost, or torchrun was stopped")


def _ended(*signal_and_frame):
    """What SIGTERM leads to: torchrun ends all where one is lost, at times before this process notices."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what there is to say comes first
    raise _lost()


def _begin():
    place, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, usable_cores() // here))  # torchrun says 1
    cards = torch.cuda.device_count()
    if cards and place >= cards:
        raise InputError(f"process {place + 1} of this machine has no GPU: start as many as it has, {cards}")
    if cards:
        torch.cuda.set_device(place)
    # No end to the wait: rank 0 may read images for long. Where a process is lost, its connections end.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo", timeout=datetime.timedelta(days=7))


def _send(job):
    """From rank 0 to all; on the others what was sent."""
    box = [job]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def share(setup, recipe, first):
    """On rank 0: have all processes train this training.Setup together from epoch `first` on."""
    global _at_work
    state = io.BytesIO()
    torch.save(checkpoint.state_of(setup), state)
    sides = [setup.train_loader.dataset, setup.test_loader.dataset]
    unique = [torch.unique(side.rows, return_inverse=True) for side in sides]
    about = [
        (len(rows), *side.pixels.shape[1:], places, side.labels)
        for side, (rows, places) in zip(sides, unique)
    ]
    job = (recipe.as_dict(), first, setup.device.type, setup.precision, state.getvalue())
    _send((*job, sides[0].classes, about))
    for side, (rows, _) in zip(sides, unique):
        for part in rows.split(CHUNK):
            dist.broadcast(side.pixels[part.to(side.pixels.device)].cpu(), 0)
    setup.shared, _at_work = Shared(setup.model), True


def part(setup):
    """The training is over: each process goes on alone."""
    global _at_work
    setup.shared, _at_work = None, False


def _received(about, classes, store):
    """A data.Split as `share` sends it."""
    count, *shape, places, labels = about
    pixels = torch.from_numpy(store((count, *shape), "uint8"))
    for part in pixels.split(CHUNK):
        dist.broadcast(part, 0)
    return Split(pixels, places, labels, classes, [""] * len(labels), [""] * len(labels))


def _help():
    """Help rank 0 in its training, if it has one, until it ends. -> exit code"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: rank 0 says so
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = dist.get_rank()
    try:
        with noticed():
            while (job := _send(None)) is not None:
                _train(*job)
    except InputError:  # rank 0 has it too, and says so
        return 2
    except RuntimeError as error:
        print(f"run.py: process {rank} ends: {error}", file=sys.stderr)
        return 1
    return 0


def _train(values, first, device, precision, state, classes, about):
    """Train as rank 0 does, on what `share` has sent."""
    recipe, device = Recipe(**values), torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        store = pixel_store(folder)
        train, test = (_received(side, classes, store) for side in about)
    setup = training.prepare(train, test, training.shown_once(recipe), device, precision)
    checkpoint.put_state(setup, torch.load(io.BytesIO(state), map_location="cpu", weights_only=True))
    torch.manual_seed(recipe.seed + dist.get_rank())  # dropout of others here than on rank 0
    setup.shared = Shared(setup.model)
    for _ in training.epochs(setup, recipe, first=first):
        pass


@contextlib.contextmanager
def noticed():
    """Turn the error of a lost connection into a LostProcess."""
    try:
        yield
    except RuntimeError as error:
        known = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in known):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in _ended
        dist.destroy_process_group()
        raise _lost() from None


class Shared(torch.nn.Module):
    """A model on all processes: each takes its share of the images, and has the logits of all.

    So each computes the loss of the whole batch, and its gradient through the own share. The sum of these,
    which DistributedDataParallel exchanges, is that of one process, but for rounding. Where the images do not
    divide, shares differ by one; a share may be empty.
    """

    noticed = staticmethod(noticed)

    def __init__(self, model):
        super().__init__()
        self.parallel = DistributedDataParallel(model)

    def forward(self, images):
        rank, sizes = dist.get_rank(), [len(part) for part in images.tensor_split(dist.get_world_size())]
        model = self.parallel if torch.is_grad_enabled() else self.parallel.module
        logits = model(images.split(sizes)[rank]).float()
        if logits.requires_grad:  # the exchange takes the mean of the processes' gradients
            logits.register_hook(lambda gradient: gradient * len(sizes))
        padded = logits.new_zeros(max(sizes), logits.shape[1])
        padded[: sizes[rank]] = logits.detach()
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        parts = [part[:size] for part, size in zip(everyone, sizes)]
        parts[rank] = logits  # the one through which gradients flow
        return torch.cat(parts)
