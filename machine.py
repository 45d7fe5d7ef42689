"""What a recipe asks of the machine: memory to train in, and folders that libraries can write to."""

import atexit
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

from recipe import InputError, Recipe


def _meminfo(name):
    """A number of Linux's /proc/meminfo, in bytes. OSError or KeyError elsewhere."""
    kilobytes = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(kilobytes[f"{name}:"])


def available_memory(device):
    """Bytes of memory that a training on this torch.device could still take; None where nothing tells.

    Too high rather than too low: of a container only its limit is known, of macOS the memory in all.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    sizes, swap = [], 0
    with contextlib.suppress(OSError, KeyError):
        swap = _meminfo("SwapFree")
        sizes.append(_meminfo("MemAvailable") + swap)
    with contextlib.suppress(OSError, ValueError):  # ValueError: it says "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) + swap)
    if not sizes:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
            sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=None)


def least_memory(recipe, classes, precision):
    """(bytes of the weights with their gradients and optimizer state, bytes a training image adds).

    A lower bound: of what the backward pass needs of a block, only what certainly stays is counted.
    """
    import torch

    from train import make_model

    with torch.device("meta"):  # sizes alone, no memory
        parameters = list(make_model(recipe, classes).parameters())
    moments = 1 if recipe.muon_learning_rate else 2  # Muon keeps one number a weight, AdamW two
    held = sum(4 * p.numel() * (2 + (moments if p.ndim == 2 else 2)) for p in parameters)

    number = 4 if precision == "fp32" else 2
    tokens = (recipe.image_size // recipe.patch_size) ** 2 + 1
    inner = recipe.heads * recipe.dim_head
    # Both norms' inputs and outputs; q, k, v and the heads' outputs; the MLP before and after its GELU.
    block = tokens * (4 * recipe.dim + 4 * inner + 2 * recipe.mlp_dim) + recipe.heads * tokens**2
    pixels = recipe.channels * recipe.image_size**2
    return held, number * recipe.depth * block + 4 * pixels


def check_memory(recipe, device, precision, images=2, classes=2):
    """InputError, with the value to reduce, if training on so many images can't fit in the memory.

    Where PyTorch says that memory is too small (CUDA, MPS), batches are cut by themselves, and one image
    must fit; on a CPU the system ends the process instead, and a whole batch must. Call it before any
    work with the smallest data set there is, and again once the images are counted.
    """
    free = available_memory(device)
    if free is None:
        return
    batch = min(recipe.batch_size, images) if device.type == "cpu" else 1

    def need(recipe, batch):
        held, image = least_memory(recipe, classes, precision)
        return held + image * batch

    if need(recipe, batch) <= free:
        return
    names = ["batch_size"]
    if need(recipe, 1) > free:  # the value whose default would save most; the two sizes are one choice
        usual = Recipe().values()
        choices = [["dim"], ["depth"], ["mlp_dim"], ["heads"], ["dim_head"], ["image_size", "patch_size"]]
        names = min(
            choices, key=lambda c: need(dataclasses.replace(recipe, **{n: usual[n] for n in c}), batch)
        )
    values = " with ".join(f"{name} = {getattr(recipe, name)}" for name in names)
    least = need(recipe, batch) / 1e9
    raise InputError(
        f"training takes at least {least:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {values} is "
        "too much"
    )


def _can_write(folder):
    """Whether files can be made in a folder, which is made too if it is not there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def keep_caches_writable():
    """Give matplotlib and fontconfig a temporary folder where they can't write to the user's own.

    Without a home folder, or with one that is read-only, both warn of it. The folder goes when the process
    ends. InputError if there is no place for temporary files at all.
    """
    home, get = os.path.expanduser("~"), os.environ.get
    if os.path.isabs(home):
        os.environ.setdefault("HOME", home)  # fontconfig looks nowhere else
    else:  # it is still "~": there is none
        home = os.devnull
    linux = sys.platform.startswith("linux")
    cache = get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if linux else home)
    config = get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if linux else home)
    plots = [get("MPLCONFIGDIR")] if get("MPLCONFIGDIR") else [cache, config]
    try:
        tempfile.gettempdir()
        lacking = [] if _can_write(cache) else ["XDG_CACHE_HOME"]
        lacking += [] if all(map(_can_write, plots)) else ["MPLCONFIGDIR"]
        if lacking:
            folder = tempfile.mkdtemp(prefix="run-caches-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            os.environ.update(dict.fromkeys(lacking, folder))
    except OSError as error:
        raise InputError(f"no temporary files can be written ({error.strerror}): set TMPDIR") from None
