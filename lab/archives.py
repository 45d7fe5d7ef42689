"""Archives as people have them: what kind a file is, and its files in a folder, within limits.

Read are zips and tars, those in them, and several of one set. Of the rest it is said what it is.
"""

import contextlib
import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

import data
from lab.errors import InputError, printable

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
FOREIGN = (".rar", ".7z")
HEADS = (  # how a file begins -> what it is, what to do
    (b"Rar!", "a RAR archive", "unpack it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the folder"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the data", "run git lfs pull first"),
)
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
DEFLATE64 = 9


class Member(NamedTuple):
    """One file of an archive; `open()` gives its content."""

    name: str  # with "/" between folders
    size: int
    open: object


def is_archive_name(path):
    """Whether a file is named as an archive that is read."""
    return str(path).lower().endswith(SUFFIXES)


def refuse(path):
    """InputError that says what a file is that is not an archive."""
    with open(path, "rb") as file:
        head = file.read(512)
    for start, what, remedy in HEADS:
        if head.startswith(start):
            raise InputError(f"{path} is {what}: {remedy}")
    if not head:
        raise InputError(f"{path} is empty: fetch it again")
    if head.lstrip()[:1] == b"<" and b"html" in head.lower():
        raise InputError(
            f"{path} is a web page and not the data, as where a download asks for a confirmation: fetch it "
            "again in a browser"
        )
    with contextlib.suppress(OSError):
        with contextlib.suppress(Image.DecompressionBombError):  # too large an image is one, too
            Image.open(path).close()
        raise InputError(f"{path} is one image: name the folder of the images")
    if head.startswith(b"PK"):
        raise InputError(
            f"cannot read {path} as a zip (its end is missing: the download broke off, or it is a part of a "
            "split zip): fetch it again, or join the parts with `zip -s 0 x.zip -O whole.zip`"
        )
    raise InputError(f"cannot read {path} as a zip or tar: check --data")


# Names


def _bytes_of(letter, encoding):
    code = letter.encode(encoding, "ignore")
    return code if len(code) == 2 else b"\0\0"


# Encodings of zips without the UTF-8 flag, and which of their characters are frequent: the first level of
# each standard. What was meant is the encoding in which most characters are frequent ones.
FREQUENT = {
    "gbk": lambda c: 0xB0 <= _bytes_of(c, "gb2312")[0] <= 0xD7,
    "big5": lambda c: 0xA4 <= _bytes_of(c, "big5")[0] <= 0xC6,
    "shift_jis": lambda c: "\u3040" <= c <= "\u30ff" or 0x88 <= _bytes_of(c, "shift_jis")[0] <= 0x97,
    "euc_kr": lambda c: "\uac00" <= c <= "\ud7a3",
    "cp437": lambda c: unicodedata.name(c, "").startswith("LATIN"),
    "cp1252": lambda c: c.isalpha(),
}


def _is_sparse(names):
    """Whether at most two of five letters are not ASCII, in those words of the names that have such ones."""
    words = {word for name in names for word in re.findall(r"[^\W\d_]+", name) if not word.isascii()}
    letters = "".join(words)
    return 5 * sum(not c.isascii() for c in letters) <= 2 * len(letters)


def decode_names(raw):
    """(the names, their encoding) of a zip's byte strings without the UTF-8 flag; it is None for ASCII, and
    where it cannot be told."""
    if all(name.isascii() for name in raw):
        return [name.decode() for name in raw], None
    with contextlib.suppress(UnicodeDecodeError):
        return [name.decode() for name in raw], "utf-8"
    best, encoding, names = 0.5, None, [name.decode("cp437") for name in raw]
    for candidate, is_frequent in FREQUENT.items():
        with contextlib.suppress(UnicodeDecodeError):
            decoded = [name.decode(candidate) for name in raw]
            letters = [c for c in {*"".join(decoded)} if not c.isascii()]
            share = sum(map(is_frequent, letters)) / len(letters)
            # Hangul have frequent codes of GBK too, but of its first half: so many there are no chance.
            korean = candidate == "euc_kr" and share == best == 1 and len(letters) >= 6
            # The ö of DOS and the letter after it can be a frequent kanji; most letters around it are ASCII.
            latin = candidate == "cp437" and share == best == 1 and _is_sparse(decoded)
            if share > best or korean or latin:
                best, encoding, names = share, candidate, decoded
    return names, encoding


def _of_links(path, names):
    """Notes on the links in an archive, by their names."""
    note = "links in {} are not followed: {}, as {}"
    return [note.format(path.name, len(names), printable(names[0]))] if names else []


def _zip_members(path, archive):
    """(Members, notes) of an open zip."""
    entries = [e for e in archive.infolist() if e.filename and not e.is_dir()]
    notes = _of_links(path, [e.filename for e in entries if stat.S_ISLNK(e.external_attr >> 16)])
    entries = [e for e in entries if not stat.S_ISLNK(e.external_attr >> 16)]
    if any(entry.flag_bits & 1 for entry in entries):
        raise InputError(f"{path} is encrypted: unpack it and give the folder")
    if any(entry.compress_type == DEFLATE64 for entry in entries):
        raise InputError(
            f"{path} is packed with Deflate64, as Windows does above 2 GB: unpack it and give the folder"
        )
    unflagged = [e for e in entries if not e.flag_bits & 0x800]
    names, encoding = decode_names([e.orig_filename.encode("cp437", "replace") for e in unflagged])
    if encoding:
        notes.append(f"file names of {path.name} read as {encoding}, which it does not say itself")
    name_of = {e: e.filename for e in entries} | dict(zip(unflagged, names))
    if any("\\" in name for name in name_of.values()):
        notes.append(f"backslashes in the names of {path.name} read as folders")
    members = [
        Member(name.split("\0")[0].replace("\\", "/"), e.file_size, lambda e=e: archive.open(e))
        for e, name in name_of.items()
    ]
    return members, notes


def _tar_members(path, archive):
    """(Members, notes) of an open tar."""
    entries = list(archive)
    notes = _of_links(path, [e.name for e in entries if e.issym() or e.islnk()])
    return [Member(e.name, e.size, lambda e=e: archive.extractfile(e)) for e in entries if e.isreg()], notes


@contextlib.contextmanager
def _opened(path):
    """(Members, notes) of a zip or tar. InputError for every other file, and for a damaged one."""
    if path.with_suffix(".z01").exists():
        raise InputError(
            f"{path} is one part of a split zip: join all with `zip -s 0 {path.name} -O whole.zip`, or "
            "unpack it with 7-Zip and give the folder"
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield _zip_members(path, archive)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                yield _tar_members(path, archive)
        else:
            refuse(path)
    except DAMAGED as error:
        raise InputError(f"cannot read {path} as a zip or tar ({error}): fetch it again") from None
    except NotImplementedError:  # a RuntimeError, too
        raise InputError(
            f"{path} is packed in a way that is not read here: unpack it and give the folder"
        ) from None
    except (OSError, RuntimeError) as error:  # a file where a folder should be, a name too long
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            reason = f"{reason}: {Path(error.filename).name[:40]}..."
        raise InputError(
            f"cannot unpack {path} ({reason}): unpack it yourself, shorten or rename what cannot be written, "
            "and give the folder"
        ) from None


# Limits


def check_count(where, count, limits):
    """InputError if an archive or folder holds too many files."""
    if count > limits.images:
        raise InputError(
            f"{where} holds {count} files, more than {limits.images:.0f}: if that is right, add "
            f"--limit images={count}"
        )


def check_size(name, where, size, limits):
    """InputError if an image in an archive or folder has too many bytes."""
    if size > limits.image_mb * 1e6:
        raise InputError(
            f"{name!r} in {where} has {size / 1e6:.0f} MB where {limits.image_mb:g} are allowed: remove it, "
            f"or add --limit image_mb={size // 10**6 + 1}"
        )


def _check(path, members, folder, limits):
    """InputError if the members of an archive are too many, too large or ambiguous."""
    check_count(path, len(members), limits)
    seen = {}
    for name, size, _ in members:
        if is_image_name(name):
            check_size(name, path, size, limits)
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            same = (
                f"{name!r} twice"
                if seen[key] == name
                else f"{seen[key]!r} and {name!r}, one file on many systems"
            )
            raise InputError(f"{path} holds {same}: rename or remove one")
        seen[key] = name
    needed, free = sum(size for _, size, _ in members), shutil.disk_usage(folder).free
    if needed > limits.total_gb * 1e9:
        raise InputError(
            f"{path} has {needed / 1e9:.1f} GB unpacked, more than {limits.total_gb:g}: if that is "
            f"right, add --limit total_gb={needed // 10**9 + 1}"
        )
    if needed > free:
        raise InputError(
            f"{path} needs {needed / 1e6:.0f} MB unpacked and {folder} has {free / 1e6:.0f} MB free: "
            "make room there, or name another --output-dir (or TMPDIR, for what is only looked at)"
        )


def is_image_name(path):
    """Whether a file is named as an image."""
    return PurePosixPath(path).suffix.lower() in data.IMAGE_SUFFIXES


# Unpacking


def _unpack(path, folder, limits):
    """The files of one archive in `folder` -> (bytes written, notes). No name leads out of it."""
    written, outside = 0, 0
    with _opened(path) as (members, notes):
        members = [m for m in members if not {"__MACOSX", ".git"} & set(PurePosixPath(m.name).parts)]
        _check(path, members, folder, limits)
        for name, size, content in members:
            # Composed letters: macOS writes others, and equal names must be equal.
            parts = unicodedata.normalize("NFC", name).split("/")
            outside += ".." in parts or not parts[0]
            parts = [p for p in parts if p not in ("", ".", "..") and not re.fullmatch(r"[A-Za-z]:", p)]
            if parts:
                target = folder.joinpath(*parts)
                # What systems add, and a text that is in all parts, may be there.
                if (
                    target.exists()
                    and not parts[-1].startswith(".")
                    and (is_image_name(name) or target.stat().st_size != size)
                ):
                    raise InputError(f"{path} holds {name!r}, as another archive: rename one of them")
                target.parent.mkdir(parents=True, exist_ok=True)
                with content() as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
                written += size
    if outside:
        notes.append(f"{outside} names in {path.name} lead out of it: their ../ or first / was left away")
    return written, notes


def inner_archives(folder):
    """The archives below a folder, sorted, hidden ones left out."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here) / n for n in names if is_archive_name(n) and not n.startswith(".")]
    return sorted(found)


def has_classes(folder):
    """Whether a folder has two class folders as it is, its archives aside."""
    with contextlib.suppress(ValueError):
        return bool(data.find_images(folder))
    return False


def _targets(archives, home, folder):
    """{archive: its folder in `folder`} of several below `home`: where it lies there, and its name.

    The name goes without its number, as the parts of a large download, "set-001.zip" and "set-002.zip", hold
    one tree. Those that hold images of the same name are no such parts, and keep their numbers; so do
    "defect1.zip" and "defect2.zip" beside "good.zip", unless they hold the same folder.
    """
    stem_of = {archive: re.sub(r"(?i)(\.tar)?\.\w+$", "", archive.name) for archive in archives}
    sets = defaultdict(list)
    for archive, stem in stem_of.items():
        name = re.sub(r"[-_ ]*\(?\d+\)?$", "", stem) or stem
        sets[folder / archive.parent.relative_to(home) / name].append(archive)
    targets = {}
    for target, some in sets.items():
        names, tops = [], []
        for archive in some if len(some) > 1 else ():
            with _opened(archive) as (members, _):
                held = [m.name.casefold() for m in members if is_image_name(m.name) and "/." not in m.name]
            names += held
            tops += {name.partition("/")[0] for name in held if "/" in name}
        numbered = all(re.search(r"\d{3}\)?$", stem_of[archive]) for archive in some)
        parts = len(sets) == 1 or numbered or len(set(tops)) < len(tops)
        whole = not parts or len(set(names)) < len(names)
        targets |= {a: target.with_name(stem_of[a]) if whole else target for a in some}
    return targets


def unpack(archives, home, folder, limits):
    """The files of archives below `home` in the new `folder`, all or none -> notes. InputError as above.

    Archives in them are unpacked too, where there are no class folders beside them.
    """
    folder.mkdir(parents=True)
    written, notes = 0, []
    try:
        targets = _targets(archives, home, folder) if len(archives) > 1 else {archives[0]: folder}
        for depth in range(4):  # a zip in a zip in a zip in a zip
            for archive, target in targets.items():
                target.mkdir(parents=True, exist_ok=True)
                left = limits._replace(total_gb=limits.total_gb - written / 1e9)
                more, said = _unpack(archive, target, left)
                written, notes = written + more, notes + said
                if depth:
                    notes.append(f"unpacked {archive.relative_to(folder).as_posix()}, which was inside")
                    archive.unlink()
            inner = inner_archives(folder)
            if depth == 3 or not inner or has_classes(folder):  # deeper ones stay, and are named as left out
                return notes
            targets = _targets(inner, folder, folder)
    except BaseException as error:
        shutil.rmtree(folder)
        if isinstance(error, InputError) and str(folder) in str(error):  # of an archive that was inside
            known = archives[0].name if len(archives) == 1 else str(home)
            raise InputError(str(error).replace(str(folder), known)) from None
        raise


def check_whole(path):
    """InputError if a zip is one of several parts, "set-001.zip", that lie beside it."""
    if match := re.fullmatch(r"(.*[-_])\d{1,3}\.zip", path.name):
        parts = [
            p
            for p in path.parent.glob("*.zip")
            if re.fullmatch(re.escape(match[1]) + r"\d{1,3}\.zip", p.name)
        ]
        if len(parts) > 1:
            raise InputError(
                f"{path} is one of {len(parts)} zips of one set: put them into one folder and give that, or "
                "rename it if it holds the whole set"
            )
