"""What was handed in: the bundles in a tree of folders and zips, and a line for everything else in it."""

import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import NamedTuple

from lab import errors
from lab.bundle import FOLDERS, KINDS, STUDENT_ID
from lab.errors import InputError
from lab.files import sha256

TAKEN = f"(?P<kind>{'|'.join(KINDS)}|ipynb)"
EXACT = re.compile(rf"(?P<id>{STUDENT_ID})_Lab8_Homework\.{TAKEN}")
# A learning platform puts its own words before a name: mei_118_9981_0812345_Lab8_Homework.pdf
FLAT = re.compile(rf"(?P<who>[^_ -]+)[_ -](?:.*[_ -])?(?P<id>[A-Za-z0-9]+)_Lab8_Homework\.{TAKEN}")
NEAR = re.compile(r"lab[ _-]?8.*\.(pdf|pyw?|pth?|ipynb)|.*\.pth", re.IGNORECASE)
ARCHIVES = (".rar", ".7z", ".tar", ".gz", ".tgz", ".xz", ".bz2")
MAX_BUNDLES = 1000
MAX_FILE, MAX_UNPACKED = 2**31, 2**34  # bytes
MAX_ENTRIES, MAX_DEPTH = 20_000, 3  # of a zip; zips within zips


class Files(NamedTuple):
    """A bundle as it was found."""

    student_id: str
    place: str  # where, for messages
    paths: dict  # {"pdf": Path, "py": Path, "pth": Path, "ipynb": Path}, those that are there
    run: Path | None = None  # the run folder beside them


class Line(NamedTuple):
    """What is said of something that is no bundle."""

    place: str
    text: str
    fails: bool = True


class Entry(NamedTuple):
    """A file: the place of its folder, its name, and where it can be read, if it can."""

    place: str
    name: str
    path: Path | None


def printable(text, most=200):
    """Text of strangers as it may be shown: one line, no control characters, not too long."""
    shown = errors.printable(text, "?")
    return shown if len(shown) <= most else shown[: most - 3] + "..."


class Tree:
    """Collects entries and lines; unpacks zips to numbered folders under `scratch`."""

    def __init__(self, scratch):
        self.scratch, self.entries, self.lines = scratch, [], []
        self.unpacked = self.zips = 0

    def say(self, place, text, fails=True):
        self.lines.append(Line(str(place), text, fails))

    def walk(self, top):
        """A folder's files. Links are named and not followed; a run's own folders beside a bundle are its."""
        waiting = [top]
        while waiting:
            folder = waiting.pop(0)
            try:
                content = sorted(folder.iterdir())
            except OSError as error:
                self.say(folder, f"cannot be read ({error.strerror})")
                continue
            bundle = any(EXACT.fullmatch(path.name) for path in content)
            for path in content:
                if path.is_symlink():
                    self.say(path, "a link, which is not followed")
                elif path.name.startswith(".") or path.name == "__MACOSX":
                    self.say(path, "hidden, passed over", fails=False)
                elif path.is_dir() and bundle and path.name in FOLDERS:
                    self.say(path, "of the bundle beside it, not read", fails=False)
                elif path.is_dir():
                    waiting.append(path)
                elif path.is_file():
                    self.add(str(folder), path.name, path)
                else:
                    self.say(path, "not a regular file")
            if not content and folder != top:
                self.say(folder, "an empty folder")

    def add(self, place, name, path, depth=0):
        """A file that can be read; a zip is opened."""
        if name.lower().endswith(".zip"):
            self.unzip(f"{place}/{name}", path, depth)
        else:
            self.entries.append(Entry(place, name, path))

    def unzip(self, shown, path, depth):
        """The entries of a zip. Only bundle files and zips are unpacked, under names of ours."""
        if depth == MAX_DEPTH:
            self.say(shown, "a zip too deep in others")
            return
        self.zips += 1
        folder, before = self.scratch / f"zip{self.zips}", len(self.entries) + len(self.lines)
        try:
            with zipfile.ZipFile(path) as archive:
                if len(archive.infolist()) > MAX_ENTRIES:
                    raise ValueError(f"more than {MAX_ENTRIES} entries")
                for i, entry in enumerate(archive.infolist()):
                    self._entry(archive, entry, shown, folder / f"{i}", depth)
        except Exception as error:  # zipfile raises many kinds on what is none
            self.say(shown, f"a damaged zip ({error})")
        if before == len(self.entries) + len(self.lines):
            self.say(shown, "an empty zip")

    def _entry(self, archive, entry, shown, folder, depth):
        *parents, name = entry.filename.replace("\\", "/").split("/")
        place, size = f"{shown}:{'/'.join(parents)}" if parents else shown, entry.file_size
        if not name:  # a folder
            return
        if name.startswith(".") or "__MACOSX" in parents:
            return self.say(f"{place}/{name}", "hidden, passed over", fails=False)
        if stat.S_ISLNK(entry.external_attr >> 16):
            return self.say(f"{place}/{name}", "a link, which is not followed")
        match, target = EXACT.fullmatch(name) or FLAT.fullmatch(name), None
        if match or name.lower().endswith(".zip"):
            if size > min(MAX_FILE, MAX_UNPACKED - self.unpacked):
                return self.say(f"{place}/{name}", f"too large to unpack ({size / 1e9:.1f} GB)")
            self.unpacked += size
            folder.mkdir(parents=True)
            target = folder / (f"file.{match['kind']}" if match else "file.zip")
            with archive.open(entry) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)  # zipfile ends an entry at the size that it states
        self.add(place, name, target, depth + 1)


def _group(tree):
    """({(place, id): {kind: Entry}}, entries that belong to none) of a Tree."""
    exact, flat, left = {}, {}, []
    for entry in tree.entries:
        if match := EXACT.fullmatch(entry.name):
            kinds = exact.setdefault((entry.place, match["id"]), {})
        elif match := FLAT.fullmatch(entry.name):
            kinds = flat.setdefault((entry.place, match["id"], match["who"]), {})
        else:
            left.append(entry)
            continue
        if kinds.setdefault(match["kind"], entry) is not entry:
            tree.say(f"{entry.place}/{entry.name}", "a second file of this kind: not read")
    # Names alone under their whole ids may be one student's, with a platform's words and numbers before it.
    alone = {}
    for key, kinds in exact.items():
        (kind, entry), *more = kinds.items()
        if not more and (match := FLAT.fullmatch(entry.name)):
            alone.setdefault((entry.place, match["id"], match["who"]), []).append((key, kind, entry))
    for belongs, names in alone.items():
        if len(names) == 1 and belongs not in flat:  # lin_mei_Lab8_Homework.pdf: an id like any other
            continue
        others = flat.setdefault(belongs, {})
        for key, kind, entry in names:
            if others.setdefault(kind, entry) is entry:
                del exact[key]
    for (place, student_id, who), kinds in flat.items():
        taken = (place, student_id) in exact
        exact[f"{place} ({who} ...)" if taken else place, student_id] = kinds
    return exact, left


def _own_id(student_id, code):
    """The id of a bundle: the end of its code's name that the code names too, where words stand before it."""
    with open(code.path, "rb") as file:
        named = re.search(rb"([A-Za-z0-9_-]+)_Lab8_Homework\.pth", file.read(2**20))
    named = named[1].decode() if named else student_id
    return named if re.match(rf".*[_ -]{named}_Lab8_Homework\.", code.name) else student_id


def _lines_of(left, found):
    """A line for each folder's files that are of no bundle."""
    folders = {}
    with_bundle = {place for place, _ in found}
    for entry in left:
        path = f"{entry.place}/{entry.name}"
        if NEAR.search(entry.name):
            yield Line(path, "nearly the name of a bundle's file: <id>_Lab8_Homework.pdf, .py, .pth")
        elif entry.name.lower().endswith(ARCHIVES):
            yield Line(path, "an archive that is not opened here: unpack it")
        else:
            folders.setdefault(entry.place, []).append(entry.name)
    for place, names in folders.items():
        shown = ", ".join(printable(name, 60) for name in names[:20]) + ", ..." * (len(names) > 20)
        beside = place in with_bundle
        yield Line(place, f"{'beside the bundle' if beside else 'no bundle in it'}: {shown}", not beside)


def find_bundles(path, scratch):
    """([Files], [Line]) of `path`: a folder or a zip of one bundle or many, with zips in it too.

    InputError if there is nothing at `path`, or no bundle in it.
    """
    path, tree = Path(path), Tree(scratch)
    if path.is_dir():
        tree.walk(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        tree.unzip(str(path), path, 0)
    else:
        wanted = "name a bundle's folder, a folder of many, or a zip"
        raise InputError(f"{path}: {wanted if path.exists() else 'there is no such folder or zip'}")
    found, left = _group(tree)
    if not found and not tree.lines and not left:
        raise InputError(f"{path}: it is empty")
    if len(found) > MAX_BUNDLES:
        raise InputError(f"{path}: more than {MAX_BUNDLES} bundles; give a part of them")
    bundles = []
    for (place, student_id), kinds in sorted(found.items(), key=lambda item: item[0][::-1]):
        paths = {kind: entry.path for kind, entry in kinds.items()}
        # The upload zip beside its own three files is no second bundle, unless it holds other files.
        beside = found.get((str(Path(place).parent), student_id), {}) if place.endswith(".zip") else {}
        if all(kind in beside and sha256(path) == sha256(beside[kind].path) for kind, path in paths.items()):
            continue
        run = next(iter(paths.values())).parent / "run"
        own = run.is_dir() and not run.is_symlink()
        if code := kinds.get("py") or kinds.get("ipynb"):
            student_id = _own_id(student_id, code)
        bundles.append(Files(student_id, place, paths, run if own else None))
    return bundles, [*tree.lines, *_lines_of(left, found)]
