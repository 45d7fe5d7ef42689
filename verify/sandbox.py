"""The logits of a submitted model, computed without trusting its code.

The submitted file is imported in a process of its own: in a scratch folder, without the parent's
environment, with bounded memory, time and file size, and without a network where the system has
user namespaces (Linux). An audit hook also refuses connections, other programs and writing outside
the scratch folder. The labels of the images never enter that process.

The hook stops accidents and plain mischief; code that is written to break out of Python itself can
get around it, so grade a stranger's files in a container or under an account made for that.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

SECONDS = 600
MEMORY = 8 * 2**30  # bytes of data; address space would count every shared library
FILE_SIZE = 2**31


class SubmissionError(Exception):
    """The submitted code or weights do not give logits. The text is one line."""


def _without_network():
    """The command prefix that gives a process no network, or nothing where the system can't do that."""
    prefix = ["unshare", "--map-root-user", "--net"]
    if shutil.which(prefix[0]) and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return prefix
    return []


def submitted_logits(code, weights, images, num_classes, scratch, recipe):
    """(logits (n, classes) float32, number of parameters) of the model in the file `code`.

    images: (n, channels, side, side) uint8, on the CPU. SubmissionError if the code fails, takes
    longer than SECONDS or more than MEMORY, or the weights do not fit its model.
    """
    import numpy as np

    scratch = Path(scratch).resolve()
    np.save(scratch / "images.npy", images.numpy())
    call = {
        "code": str(Path(code).resolve()),
        "weights": str(Path(weights).resolve()),
        "num_classes": num_classes,
        "recipe": recipe.as_dict(),
    }
    (scratch / "call.json").write_text(json.dumps(call))
    _run_apart(scratch)
    try:
        with np.load(scratch / "answer.npz", allow_pickle=False) as answer:
            logits, parameters = answer["logits"], int(answer["parameters"])
    except (OSError, KeyError, ValueError) as error:
        raise SubmissionError(f"the code left no logits ({error})") from None
    if logits.shape != (len(images), num_classes) or logits.dtype != np.float32:
        raise SubmissionError(
            f"the model gives {logits.dtype} {logits.shape}, not float32 {(len(images), num_classes)}"
        )
    if not np.isfinite(logits).all():
        raise SubmissionError("the weights give logits that are not numbers")
    return logits, parameters


def _run_apart(scratch):
    """Run `answer` on the folder `scratch` in a process of its own. SubmissionError if that fails."""
    import matplotlib

    environment = {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # else its list of fonts is made anew
        **{name: os.environ[name] for name in ("SYSTEMROOT", "OMP_NUM_THREADS") if name in os.environ},
    }
    command = [*_without_network(), sys.executable, "-I", "-B", str(Path(__file__).resolve()), str(scratch)]
    with open(scratch / "said.txt", "wb") as said:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise SubmissionError(f"the code took longer than {SECONDS} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError, AttributeError):  # gone; Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    if process.returncode:
        raise SubmissionError(_last_line(scratch / "said.txt") or f"the code stopped ({process.returncode})")


def _last_line(path):
    """The last line that the process said, without control characters, at most 200 letters."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:200] if lines else ""


# In the other process


def limit_resources():
    """Bound this process's memory and the size of its files, where the system can; no core dumps."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, limit in (("RLIMIT_DATA", MEMORY), ("RLIMIT_FSIZE", FILE_SIZE), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(ValueError, OSError):  # already lower, or unknown to this system
            resource.setrlimit(getattr(resource, name), (limit, limit))


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "os.link",
    "os.symlink",
)
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
)


def guard_with(home):
    """Refuse from now on to connect, to start programs, and to change anything outside `home`."""
    home = os.path.realpath(home)

    def inside(path):
        path = os.path.realpath(os.fsdecode(path))
        return path == home or path.startswith(home + os.sep) or path == os.devnull

    def guard(event, args):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"the code is not allowed to do that here ({event})")
        paths = ()
        if event == "open" and not isinstance(args[0], int):
            mode, flags = args[1:3]
            writes = flags & WRITING if isinstance(flags, int) else set(mode or "r") & set("wax+")
            paths = args[:1] if writes else ()
        elif event in CHANGES:
            paths = [path for path in args[:2] if isinstance(path, (str, bytes))]
        if not all(inside(path) for path in paths):
            raise PermissionError(f"the code is not allowed to write outside its folder ({paths[0]})")

    sys.addaudithook(guard)


def answer(scratch):
    """Import the submitted code, load its weights, and write the logits to answer.npz."""
    root = str(Path(__file__).parent.parent)
    call = json.loads((scratch / "call.json").read_text())
    limit_resources()

    sys.path.insert(0, root)
    import importlib.util

    import matplotlib.pyplot  # noqa: F401 - it looks for fonts with another program
    import numpy as np
    import torch

    from data import normalize
    from train import symmetries

    # A submission stands on its own: it finds no module of ours.
    sys.path.remove(root)
    for name in list(sys.modules):
        top = Path(root, name.partition(".")[0])
        if name != "__main__" and (top.with_suffix(".py").is_file() or (top / "__init__.py").is_file()):
            del sys.modules[name]
    images = torch.from_numpy(np.load(scratch / "images.npy"))
    settings = SimpleNamespace(**call["recipe"])

    guard_with(scratch)
    spec = importlib.util.spec_from_file_location("submission", call["code"])
    module = importlib.util.module_from_spec(spec)
    sys.modules["submission"] = module
    spec.loader.exec_module(module)
    model = module.make_model(module.SETTINGS, call["num_classes"])
    weights = torch.load(call["weights"], map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    model.eval()
    logits = []
    with torch.no_grad():
        for batch in images.split(256):
            views = symmetries(normalize(batch.float() / 255, settings.standardize), settings)
            logits.append(torch.stack([model(view).float() for view in views]).mean(0))
    parameters = sum(p.numel() for p in model.parameters())
    np.savez(scratch / "answer.npz", logits=torch.cat(logits).numpy(), parameters=parameters)


if __name__ == "__main__":
    try:
        answer(Path(sys.argv[1]))
    except BaseException as error:  # whatever the submitted code raises is its fault, SystemExit too
        said = " ".join(str(error).split())
        print(f"{type(error).__name__}: {said}" if said else type(error).__name__, file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
