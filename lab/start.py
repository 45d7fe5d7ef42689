"""What comes before all else: is this Python new enough, are the packages there, can the console say all.

`lab/__init__.py` runs it, and each command imports something of lab before anything from elsewhere. Only the
standard library, and only syntax of Python 3.6, or an old Python would show a traceback in place of the line.
"""

import os
import re
import sys
from importlib.util import find_spec

OLDEST = (3, 10)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Imported by another name than pip knows them by; all others only have _ for -.
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "markdown-it-py": "markdown_it"}
MODULES["fonttools"] = "fontTools"


def missing_packages():
    """Those of requirements.txt that cannot be imported. Searched for, not imported: that takes seconds."""
    with open(os.path.join(ROOT, "requirements.txt"), encoding="utf-8") as file:
        # A line with a condition, of some Pythons or systems only, is left to pip.
        lines = [line for line in file if ";" not in line.partition("#")[0]]
    names = [re.match(r"[\w-]+", line).group() for line in lines if line[:1].isalpha()]
    return [name for name in names if find_spec(MODULES.get(name, name.replace("-", "_"))) is None]


def fault():
    """What keeps the program from starting, in one line with the command that helps; None if nothing does."""
    if sys.version_info < OLDEST:
        return f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version.split()[0]}"
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or "0"  # NumPy reads it too, as it is imported
    if not re.match(r"[0-9]{1,11}$", epoch):
        return f"SOURCE_DATE_EPOCH={epoch!r} is not a number of seconds: unset it"
    missing = missing_packages()
    if not missing:
        return None
    if sys.prefix == sys.base_prefix and "torch" in missing:  # no environment, where pip may be barred
        folder = "Scripts" if os.name == "nt" else "bin"
        how = f"python3 -m venv .venv && .venv/{folder}/pip install -r requirements.txt"
        how += f", then start it with .venv/{folder}/python"
    else:
        how = f"{sys.executable or 'python3'} -m pip install -r requirements.txt"
    named = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
    return f"packages are missing ({named}): {how}"


def check_start():
    """Exit with code 2 and one line if the program cannot start. Makes printing safe for any console."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, and takes all letters
            stream.reconfigure(errors="backslashreplace")  # a class 裂纹 on cp1252: \u88c2\u7eb9, and go on
    line = fault()
    if line:
        path, name = os.path.split(sys.argv[0])
        name = os.path.basename(path) if name == "__main__.py" else name  # python -m study
        print(f"{'lab' if name == '-m' else name}: {line}", file=sys.stderr)
        sys.exit(2)
