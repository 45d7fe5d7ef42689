"""What this machine is and bears: device, precision, memory, and folders that libraries can write to."""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import gc
import math
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

from lab.errors import InputError
from lab.recipe import Recipe
from lab.record import Machine

PACKAGES = ("torch", "torchvision", "einops", "torchinfo", "scikit-learn", "matplotlib", "weasyprint")


def choose_device(name="auto"):
    """The torch.device called auto, cpu, cuda or mps. InputError if this machine has none such."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in has.items() if there)
    if not has[name]:
        raise InputError(f"--device {name}: PyTorch finds none here; use --device auto or cpu")
    return torch.device(name)


@functools.cache
def bf16_is_faster(device):
    """Whether the device multiplies bf16 matrices faster than float32. A CPU with instructions for it
    is tried, in some 20 ms: with them a 4th generation Intel Xeon without AMX takes twice the time."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 and later
    known = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if device.type != "cpu" or not known:
        return False
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in [*seconds] * 20:  # in turn, and the fastest: other work comes and goes
        tokens, matrix = torch.ones(1024, 128, dtype=dtype), torch.ones(128, 256, dtype=dtype)
        start = time.perf_counter()
        tokens @ matrix
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]  # autocast's copies take time, too


def choose_precision(name, device):
    """ "fp32", "bf16" or "fp16" for auto or such a name. InputError where the device lacks it."""
    if name == "auto":
        return "bf16" if bf16_is_faster(device) else "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise InputError("--precision fp16 needs an NVIDIA GPU; use --precision auto, bf16 or fp32")
    return name


def processes():
    """How many processes torchrun has started to train together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def usable_cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe_machine(device, precision="fp32"):
    """The Machine of a run: system, processor, device, threads and package versions."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        device=device.type,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        packages={name: metadata.version(name) for name in PACKAGES},
        precision=precision,
    )


def keep_freed_memory():
    """Have the C library keep what tensors free for the next step's: training is up to 1.4 times as fast.

    Else glibc gives blocks of megabytes back to the system at once, and the system clears new pages
    for them in the next step. Blocks over 32 MiB (the most that glibc allows here) still go back.
    No effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; Windows
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    mallopt(M_MMAP_THRESHOLD, 2**25)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory():
    """Have the C library give back to the system what was freed so far. No effect where it is not glibc."""
    gc.collect()  # a drawn page is a tree whose parts know each other
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def apart(context, work, *args, seconds, limits):
    """What `work(*args)` returns, in a process of its own of this context of multiprocessing, where nothing
    is printed.

    limits: {name in the module resource: number}, where the system has it. TimeoutError after so many
    seconds, EOFError with the exit code where the process ends without a word.
    """
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work_apart, args=(send, limits, work, args), daemon=True)
    process.start()
    send.close()
    try:
        if not receive.poll(seconds):
            raise TimeoutError
        return receive.recv()
    except EOFError:
        process.join(10)
        raise EOFError(process.exitcode) from None
    finally:
        process.kill()
        process.join()
        receive.close()


def _work_apart(pipe, limits, work, args):
    end_with_parent()
    quiet = os.open(os.devnull, os.O_WRONLY)  # nothing that a library prints is shown
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; already lower
        import resource

        for name, most in limits.items():
            resource.setrlimit(getattr(resource, name), (most, most))
    pipe.send(work(*args))


def end_with_parent():
    """Have this process of multiprocessing's end as soon as the one that started it is gone, killed or not,
    in place of working on for nobody."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def leave(code):
    """End the process with this exit code, after all that was to be done at its end. Unloading PyTorch's
    libraries for CUDA as well takes half a second and 100 MB, and a thread of gloo that still frees what it
    sent would abort the process."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(code)


def memory_size(unknown=8 << 30):
    """Bytes of main memory on this machine, or of the container where less; `unknown` where neither tells."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # ValueError: it says "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes, default=unknown)


def pixel_store(folder):
    """A maker of arrays for pixels, as `data.read_pixels` takes it: in memory, or in a nameless file in
    `folder` where they would take over a quarter of the memory. Batches are then read from the disk."""
    import numpy as np

    def make(shape, dtype):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size <= memory_size() // 4:  # the model, its gradients and the decoder need room too
            return np.empty(shape, dtype)
        try:
            # Nameless: it goes with the process, however that ends.
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):  # a file with holes would end the process on a full disk
                    os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "w+", shape=shape)
        except OSError as error:
            raise InputError(
                f"{size / 1e9:.1f} GB of pixels fit neither in memory nor in {folder} ({error.strerror}): "
                "make room, or choose a smaller image_size"
            ) from None

    return make


def available_memory(device):
    """Bytes of memory that a training on this torch.device could still take; None where nothing tells.

    Too high rather than too low: of a container only its limit is known, of macOS the memory in all.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {name: int(number) for name, number, *_ in map(str.split, lines)}
        free, swap = (1024 * kilobytes[name] for name in ("MemAvailable:", "SwapFree:"))
    except (OSError, KeyError):  # not Linux
        return memory_size(None)
    return min(free, memory_size()) + swap


def model_of_sizes(recipe, classes):
    """The recipe's ViT, of which the sizes of its weights count alone: on the device "meta", which takes no
    memory. A small one is made as it is, as PyTorch imports for a second before it draws on that device."""
    import torch

    from train import make_model

    r = recipe
    matrices = r.depth * (4 * r.heads * r.dim_head + 2 * r.mlp_dim) + r.channels * r.patch_size**2
    weights = r.dim * (matrices + (r.image_size // r.patch_size) ** 2 + classes)
    with torch.device("cpu" if weights < 10**7 else "meta"):
        return make_model(recipe, classes)


def least_memory(recipe, classes, precision):
    """(bytes of the weights with their gradients and optimizer state, bytes a training image adds).

    A lower bound: of what the backward pass needs of a block, only what certainly stays is counted.
    """
    parameters = list(model_of_sizes(recipe, classes).parameters())
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
    """InputError, with the value to reduce, if training on so many images cannot fit in the memory.

    Call it before any work with the smallest data set there is, and again once the images are counted.
    """
    free = available_memory(device)
    if free is None:
        return
    usual, batch = Recipe(), min(recipe.batch_size, images)

    def need(names=(), batch=batch):  # with the default values of these names
        changed = dataclasses.replace(recipe, **{name: getattr(usual, name) for name in names})
        held, image = least_memory(changed, classes, precision)
        return held + image * batch

    if need() <= free:
        return
    names = ["batch_size"]
    if need(batch=1) > free:  # the value whose default would save most; the two sizes are one choice
        names = min(["dim"], ["depth"], ["mlp_dim"], ["heads"], ["dim_head"], ["image_size", "patch_size"],
                    key=need)  # fmt: skip
    values = " with ".join(f"{name} = {getattr(recipe, name)}" for name in names)
    raise InputError(
        f"training takes at least {need() / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: "
        f"{values} is too much"
    )


def keep_caches_writable():
    """Give matplotlib and fontconfig a temporary folder where the user's home is not there or read-only: both
    warn of it. The folder goes when the process ends. InputError if there is no place for temporary files."""
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        os.environ.setdefault("HOME", home)  # fontconfig looks nowhere else
    try:
        tempfile.gettempdir()
        if not os.access(home, os.W_OK | os.X_OK):
            folder = tempfile.mkdtemp(prefix="run-caches-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            os.environ.setdefault("XDG_CACHE_HOME", folder)
            os.environ.setdefault("MPLCONFIGDIR", folder)
    except OSError as error:
        raise InputError(f"no temporary files can be written ({error.strerror}): set TMPDIR") from None
