"""Which files of a folder are images of which class, and why the others are not.

The classes are those that the graded core (data.find_images) sees. Here is what it is shown: every file is
opened, masks and what is not an image are put aside with a reason, and what can be meant in two ways is
refused with the choice named.
"""

import fnmatch
import functools
import glob
import os
import re
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import data
from lab.archives import FOREIGN, is_archive_name, is_image_name
from lab.errors import InputError, check_name, printable
from lab.files import name_images
from lab.labels import read_labels, table_beside
from lab.record import LeftOut

# What Pillow opens by itself; EPS and WMF would start other programs. A .tga has no beginning to know it by.
FORMATS = "BMP DIB GIF JPEG JPEG2000 PCX PNG PPM SGI TIFF WEBP AVIF QOI"
Image.init()
FORMATS = [name for name in FORMATS.split() if name in Image.OPEN]  # AVIF is not in every Pillow
# No classes, where all files are called so.
CAMERA = {"img", "image", "dsc", "dscn", "dscf", "pict", "photo", "frame", "screenshot", "scan", "pxl", "dji"}
CAMERA |= {"gopr", "mvimg", "vid", "video", "videoframe", "p", "cam", "camera", "whatsappimageat"}
DATE = re.compile(r".*\d{4}\D?\d\d\D?\d\d.*")
# A part of a ready-made split in the name of a class: test_ok, crackTrain.
PART = r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|训练集?|测试集?|验证集?)"
PART_NAME = re.compile(rf"(?i){PART}[ _.-]*(.*)|(.+)[ _.-]+{PART}")
DEPTH = 64  # of folders in folders
# Pictures for other programs. Some raw formats open as their small preview, which is worse than not at all.
FOREIGN_IMAGES = re.compile(r"\.(hei[cf]|cr[23]|nef|arw|dng|orf|rw2|raf|raw|svg|eps|psd|ai|dcm|jxl)")
MASK_FOLDER = re.compile(
    r"(?i)masks?|la?b[ae]le?s?|lables?|ground[_ -]?truths?|gt|annotations?"
    r"|segment(ed|ations?)([_ -]?(class|object)s?)?|seg[_ -]?maps?"
)
MASK_NAME = re.compile(r"(?i)(.+?)[_-](mask|masks|label|labels|gt|seg|segmentation|template|temp)([_-]?\d+)?")


class Probe(NamedTuple):
    """What a file says of itself: (width, height), Pillow's mode, whether it has several pages, and whether
    16 bits a channel, of which that mode has 8."""

    size: tuple[int, int]
    mode: str
    pages: bool
    cut: bool


class Layout(NamedTuple):
    """`images`: sorted (class, name, path); `left_out`: lab.record.LeftOut; `notes`: what was guessed."""

    images: list
    left_out: list
    notes: list
    wide: list  # paths of images with more than 8 bits a channel


def _open(path):
    return Image.open(path, formats=["TGA"] if str(path).lower().endswith(".tga") else FORMATS)


def probe(path):
    """The Probe of a file, None if Pillow cannot open it."""
    if not os.path.isfile(path) or not os.path.getsize(path):  # a pipe would be waited for
        return None
    try:
        with _open(path) as file:
            pages = file.format != "MPO" and getattr(file, "is_animated", False)
            cut = not file.mode.startswith("I") and any(";16" in str(tile[3]) for tile in file.tile)
            return Probe(file.size, file.mode, pages, cut)
    except Exception:  # a damaged file can raise nearly anything
        return None


def describe_content(path):
    """What a file is that is not an image that is read, in words."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer in place of an image: run git lfs pull"
    if head[4:8] == b"ftyp":
        return "it is HEIC or a video whatever its name says: convert it to JPEG"
    if head.lstrip()[:1] == b"<":
        return "it is a web page or other text"
    try:
        _open(path).close()
    except Image.DecompressionBombError:  # at twice the number of which Pillow warns
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
    except Exception:
        pass
    return "it is not an image, or damaged"


def walk(folder, left_out, most=float("inf")):
    """The paths of the files under `folder`, relative to it and sorted; what is no data goes into `left_out`,
    {reason: [paths]}.

    Links to folders are followed, but no folder is entered twice: a link to one above it leads round in a
    circle. InputError if a folder cannot be read. It ends early with more than `most` files.
    """
    files, waiting, links, entered = [], [Path(folder)], [], set()
    while (waiting or links) and len(files) <= most:
        # Links last: a folder is then known by its own path, not by that of a link to it.
        here = waiting.pop() if waiting else links.pop(0)
        if len(here.parts) - len(Path(folder).parts) > DEPTH:
            raise InputError(f"{folder} holds folders more than {DEPTH} deep: name the folder of the images")
        if (real := os.path.realpath(here)) in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"cannot read the folder {here} ({error.strerror}): give access to it, or move it away"
            ) from None
        for entry in entries:
            path = Path(entry.path).relative_to(folder)
            is_folder = os.path.isdir(entry.path)
            if reason := _no_data(entry, is_folder):
                files_in = sum(len(names) for _, _, names in os.walk(entry.path)) if is_folder else 1
                left_out[reason] += [path] * files_in
            elif is_folder:
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            else:
                files.append(path)
    return sorted(files)


def _no_data(entry, is_folder):
    """Why an entry of a folder is never data; None if it may be."""
    if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
        return "hidden or of the system"
    if is_folder and (
        entry.name in ("site-packages", "node_modules")
        or os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))
    ):
        return "in an environment of Python or Node"
    if is_folder and os.path.exists(os.path.join(entry.path, "run", "record.json")):
        return "output of this program"
    return None


def _matches(path, patterns):
    """Whether a glob of `patterns` fits a path, its name, or a folder that it stands in."""
    text = path.as_posix()
    return any(
        fnmatch.fnmatch(text, p + end) or fnmatch.fnmatch(text, f"*/{p}{end}")
        for p in patterns
        for end in ("", "/*")
    )


# Masks


def _has_few_levels(path):
    """Whether four grey levels make up nearly all of an image: a mask, also one that was resized since."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            deep = image.mode.startswith(("I", "F"))  # which Pillow would clip to white
            grey = np.asarray(image if deep else image.convert("L"))
            counts = sorted(np.unique(grey, return_counts=True)[1].tolist())
            return sum(counts[-4:]) > 0.9 * sum(counts)
    except Exception:  # a damaged file can raise nearly anything
        return False


def _sample(paths):
    """Some eight of many paths, evenly chosen."""
    return paths[:: max(1, len(paths) // 8)]


def _has_twin(path, depth, called):
    """Whether just one picture beside a folder of masks, `depth` names deep, is called as `path` is in it.

    Where several are, as classes that all number their pictures from 1, it is the mask of none of them.
    """
    parts = path.with_suffix("").as_posix().lower().split("/")
    home, tail = "".join(f"{part}/" for part in parts[: depth - 1]), "/" + "/".join(parts[depth:])
    same = [text for text in called[parts[-1]] if text.startswith(home) and f"/{text}".endswith(tail)]
    return len(same) == 2  # itself, and the other


def find_masks(folder, paths):
    """{path: reason} of the images that are masks or templates of others: in a folder or of a name that says
    so, or of few levels beside a picture of the same name."""
    called = defaultdict(list)  # stem -> the paths, without their suffix
    for path in paths:
        called[path.stem.lower()].append(path.with_suffix("").as_posix().lower())
    suspects, by_folder, twins = {}, defaultdict(list), defaultdict(list)
    for path in paths:
        twins[path.with_suffix("")].append(path)
        named = MASK_NAME.fullmatch(path.stem)
        inside = [part for part in path.parts[:-1] if MASK_FOLDER.fullmatch(part)]
        if inside:
            by_folder[path.parts[: path.parts.index(inside[0]) + 1]].append(path)
        elif named and {named[1].lower(), f"{named[1]}_test".lower()} & called.keys():
            suspects[path] = f"look like masks or templates (called *_{named[2].lower()})"
    masks = dict(suspects)
    for parts, members in by_folder.items():
        # A class may be called "mask", beside "no_mask": pictures of many levels and names of their own.
        sample = _sample(members)
        few = sum(_has_few_levels(folder / path) for path in sample)
        shared = sum(bool(MASK_NAME.fullmatch(p.stem)) or _has_twin(p, len(parts), called) for p in sample)
        if 2 * few >= len(sample) or 2 * shared > len(sample):
            masks |= dict.fromkeys(members, f"look like masks (in a folder {parts[-1]})")
    masks |= _mask_folders(folder, [path for path in paths if path not in masks])
    pairs = [sorted(pair) for pair in twins.values() if len(pair) > 1]
    members = [path for pair in pairs for path in pair]
    with ThreadPoolExecutor() as pool:
        levels = dict(zip(members, pool.map(_has_few_levels, [folder / path for path in members])))
    for pair in pairs:
        few = [path for path in pair if levels[path]]
        if len(few) < len(pair):
            other = next(path for path in pair if not levels[path]).suffix
            masks |= {
                p: f"look like masks ({p.suffix} of few levels beside a {other} of the same name)"
                for p in few
            }
    return masks


def _mask_folders(folder, paths):
    """{path: reason} of images in a folder that is a folder of masks whatever its name: all are of few levels
    and called as pictures of many levels in a folder beside it. Names that only number pictures, as those of
    two classes may, count where the masks are another kind of file."""
    by_home, beside, masks = defaultdict(list), defaultdict(list), {}
    for path in paths:
        if path.parent.parts:
            by_home[path.parent].append(path)
    for home in by_home:
        beside[home.parent].append(home)
    stems = {home: {path.stem.lower() for path in some} for home, some in by_home.items()}
    kinds = {home: {path.suffix for path in some} for home, some in by_home.items()}
    named = {home: _tells_more({*map(_word, some)}) for home, some in stems.items()}
    few_levels = functools.cache(lambda path: _has_few_levels(folder / path))
    for home, members in by_home.items():
        for other in beside[home.parent]:
            # What costs least first: of a thousand classes a million pairs are looked at.
            if other == home or not (named[home] or kinds[home].isdisjoint(kinds[other])):
                continue
            if (
                stems[home] <= stems[other]
                and all(map(few_levels, _sample(members)))
                and not any(map(few_levels, _sample(by_home[other])))
            ):
                reason = f"look like masks (called as the pictures in {other.name})"
                masks |= dict.fromkeys(members, reason)
    return masks


# Classes


def _check_classes(classes):
    """InputError where names of classes cannot be shown, or differ only in case or in spaces: one folder on
    Windows and macOS, one word on a page."""
    first_of = {}
    for name in sorted(classes):
        check_name(name)
        if (other := first_of.setdefault(" ".join(name.casefold().split()), name)) != name:
            raise InputError(f"the classes {other!r} and {name!r} differ only in case or spaces: rename one")


def _word(name):
    """A name without what only numbers it: "batch 2" and "Batch_3" are the same word."""
    return re.sub(r"[\d\W_]+", "", name).lower()


def _tells_more(words):
    """Whether no name, of such `_word`s, only numbers a picture or is what a camera writes."""
    return words.isdisjoint(CAMERA | {""})


def _check_depth(folder, images, notes):
    """InputError where class folders hold folders of their own, so that either could be the classes."""
    inner, glob_of = defaultdict(set), {}  # class -> the folders right below it, and what fits its files
    for label, _, path in images:
        parts = path.relative_to(folder).parts[:-1]
        place = parts.index(label) + 1 if label in parts else len(parts)
        below = parts[place:]
        glob_of.setdefault(label, glob.escape("/".join(parts[:place])) + "/*")
        below = [part for part in below if part != label and not re.fullmatch(data.SPLIT, part)]
        inner[label].update(below[:1])
    if all(names and re.search("(?i)train|test|val", label) for label, names in inner.items()):
        raise InputError(
            f"{' and '.join(sorted(inner))} in {folder} are called as the parts of a ready-made split, and "
            "hold folders: if these are the classes, call the parts train and test"
        )
    for label, names in inner.items():
        words = {_word(name) for name in names} - {""}
        # crack/2024-05-01 and crack/batch 2 are no classes; a name that is one elsewhere is.
        if len(words) < 2 and not names & (set(inner) - {label}):
            if names:
                notes.append(
                    f"folders below the class {label!r} belong to it ({', '.join(sorted(names)[:3])})"
                )
            continue
        shown = ", ".join(sorted(names)[:4])
        twin = next((other for other in inner if other != label and inner[other] & names), None)
        one_level = "put their pictures directly into the class's folder"
        if twin:
            raise InputError(
                f"{label!r} and {twin!r} in {folder} both hold folders {shown}: if these are two sets, or "
                f"one twice, add --exclude '{glob_of[label]}' or name one with --data; "
                f"if classes, {one_level}"
            )
        raise InputError(
            f"{label!r} in {folder} holds folders of its own ({shown}) beside other classes: name it with "
            f"--data for these, add --exclude '{glob_of[label]}', or {one_level}"
        )


def _check_parts(labels, folder):
    """InputError where classes are the same but for a part of a ready-made split in their names."""
    classes = defaultdict(dict)  # what else a name says -> {part: the name}
    for label in labels:
        if found := PART_NAME.fullmatch(label):
            part, rest = found[1] or found[4], found[2] or found[3] or ""
            classes[rest.casefold()][part.casefold()] = label
    for same in classes.values():
        if len(same) > 1:
            raise InputError(
                f"{' and '.join(sorted(same.values()))} in {folder} are called as parts of a ready-made "
                "split: put the images of each class in a folder of its name, below train and test, or name "
                "a table with --labels"
            )


def _guesses(images, words, in_folders, table):
    """What was guessed about classes, with what says otherwise; as `_by_folders` has them."""
    stems = defaultdict(set)
    for label, _, path in images:
        stems[label].add(path.stem.lower())
    labels, (first, *others) = sorted(stems), stems.values()
    if table:
        yield f"{table.name} names images too; the folders are used, --labels {table} takes the table"
    if not in_folders:
        yield "the classes are taken from the names of the files"
        return
    for label in labels:
        if re.fullmatch(data.SPLIT, label):
            yield (
                f"the folder {label!r} is taken for a class: if it is not, add --exclude "
                f"'{glob.escape(label)}/*'"
            )
    shown = ", ".join(labels[:3])
    if len(words) == 1 and (words != {""} or all(map(DATE.fullmatch, labels))):
        yield (
            f"the classes {shown} differ in a number alone: if these are batches or "
            "parts, name a table of the classes with --labels"
        )
    if all(other == first for other in others) and _tells_more({*map(_word, first)}):
        yield (
            f"the classes {shown} hold pictures of the same names: if they are versions of the same ones, "
            "name one folder with --data"
        )


def _by_folders(folder, paths, files, masks, notes):
    """(class, name, path) of images by their folders or names. InputError where that gives no classes."""
    table = table_beside(folder, files, paths)
    ask = f"; the table {table.name} names them: add --labels {table}" if table else ""
    try:
        images = data.find_images(folder, [folder / path for path in paths])
    except ValueError as error:
        if masks:
            path = next(iter(masks))
            some = glob.escape(path.parent.as_posix()) + "/*" if path.parent.parts else path.name
            ask += f"; {len(masks)} files look like masks: if a class is among them, add --include '{some}'"
        raise InputError(f"{error}{ask}") from None
    # One name written in two ways, as macOS and Windows do, is one class; its files need names of their own.
    pairs = [(unicodedata.normalize("NFC", label), path) for label, _, path in images]
    images = name_images(pairs, folder)
    counts = Counter(label for label, _, _ in images)
    in_folders = any(label in path.relative_to(folder).parts for label, _, path in images)
    words = {_word(label) for label in counts}
    # Numbers and dates alone are no classes, nor is what a camera writes.
    from_names = not in_folders and (
        2 * list(counts.values()).count(1) > len(counts) or words <= CAMERA or len(words) == 1
    )
    from_names = from_names or all(re.fullmatch(data.SPLIT, label) for label in counts)  # train_0001.jpg
    if table and len(words) == 1 and not from_names:
        raise InputError(
            f"{', '.join(sorted(counts)[:3])} in {folder} may be classes, and {table} names the images too: "
            f"add --labels {table}, or --exclude '{table.name}' for the folders"
        )
    if from_names:
        example = images[0][2].relative_to(folder).as_posix()
        raise InputError(
            f"the names of files and folders in {folder} give no classes (as {example!r}): put the images of "
            f"each class in a folder of its name, or name a table with --labels{ask}"
        )
    _check_parts(counts, folder)
    notes += _guesses(images, words, in_folders, table)
    _check_depth(folder, images, notes)
    return images


def sort_files(folder, choices, left_out):
    """(candidate images {path: Probe or None}, all paths) below a folder."""
    files = walk(folder, left_out)
    candidates = {}
    for path in files:
        if _matches(path, choices.exclude):
            left_out["--exclude"].append(path)
            continue
        suffix = path.suffix.lower()
        if FOREIGN_IMAGES.fullmatch(suffix):
            left_out[f"{suffix}, which is not read here: convert them to JPEG or PNG"].append(path)
        elif suffix in FOREIGN:
            left_out[f"{suffix} archives, which are not read here: unpack them"].append(path)
        elif is_archive_name(path):
            left_out["archives, beside images that are not packed"].append(path)
        elif found := probe(folder / path):
            candidates[path] = found
        elif is_image_name(path):
            candidates[path] = None  # reading will tell why
        else:
            left_out[f"not images ({suffix or 'no suffix'})"].append(path)
    return candidates, files


def count_left_out(left_out):
    """The LeftOut rows of {reason: [paths]}, the most files first."""
    rows = [
        LeftOut(printable(reason), len(some), printable(some[0].as_posix()))
        for reason, some in left_out.items()
        if some
    ]
    return sorted(rows, key=lambda row: -row.files)


def _check_readable(folder, candidates):
    """InputError where more than a few of the images are not images at all."""
    broken = [path for path, found in candidates.items() if found is None]
    if len(broken) * 20 > len(candidates):
        first = folder / broken[0]
        why = describe_content(first) if os.path.isfile(first) else "it is not a regular file"
        raise InputError(
            f"{len(broken)} of {len(candidates)} images cannot be read, the first {first} ({why}): replace "
            "or remove them"
        )


def understand(folder, choices):
    """The Layout of a folder; `choices`: lab.record.Choices. InputError where it can be meant in two ways."""
    left_out, notes = defaultdict(list), []
    candidates, files = sort_files(folder, choices, left_out)
    _check_readable(folder, candidates)
    kept = {path for path in candidates if _matches(path, choices.include)}
    masks = find_masks(folder, [path for path, found in candidates.items() if found and path not in kept])
    for path, reason in masks.items():
        left_out[reason].append(path)
    paths = [path for path in candidates if path not in masks]
    for flag, patterns in (("--include", choices.include), ("--exclude", choices.exclude)):
        for pattern in patterns:
            if not any(_matches(path, [pattern]) for path in files):
                notes.append(f"{flag} {pattern!r} fits no file")
    if not paths:
        found = ", ".join(f"{len(some)} {reason}" for reason, some in left_out.items())
        raise InputError(f"no images in {folder}{f' ({found})' if found else ''}: check --data")
    for path in paths:
        check_name(path.as_posix())
    excluded = {*left_out.get("--exclude", ())}
    files = [path for path in files if path not in excluded]
    if choices.labels:
        tables, images = read_labels(choices.labels, folder, paths, files, left_out, notes)
        left_out = {
            reason: [p for p in some if folder / p not in tables] for reason, some in left_out.items()
        }
    else:
        images = _by_folders(folder, paths, files, masks, notes)
    _say_pooled(folder, images, notes)
    used = {path for _, _, path in images}
    _check_classes({label for label, _, _ in images})
    if not choices.labels:
        left_out["beside the class folders"] += [path for path in paths if folder / path not in used]
        _say_lost(folder, used, notes)
    about = {path: candidates[path] for path in paths if candidates[path] and folder / path in used}
    if pages := [path for path in about if about[path].pages]:
        notes.append(f"{len(pages)} files have several pages or frames: the first is read (as of {pages[0]})")
    if cut := [path for path in about if about[path].cut]:
        notes.append(f"of {len(cut)} images with 16 bits a colour the upper 8 are read (as of {cut[0]})")
    wide = [folder / path for path in about if about[path].mode.startswith(("I", "F"))]
    return Layout(images, count_left_out(left_out), notes, wide)


def _say_pooled(folder, images, notes):
    """Note the parts of a ready-made split whose images are pooled."""
    counts = Counter()
    for (label, home), number in Counter((label, path.parent) for label, _, path in images).items():
        places = [*home.relative_to(folder).parts[::-1]]  # from the image up
        if label in places:
            places.remove(label)  # a class may be called train
        parts = [name for name in reversed(places) if re.fullmatch(data.SPLIT, name)]
        counts["/".join(dict.fromkeys(parts)) or "other folders"] += number
    if len(counts) > 1 and re.search(f"(?i){PART}|pred", " ".join(counts)):
        shown = ", ".join(f"{printable(part)} ({number:,})" for part, number in sorted(counts.items()))
        notes.append(f"the parts of a ready-made split are pooled, and split anew 70/30: {shown} images")


def _say_lost(folder, used, notes):
    """Note the folders beside those of the classes of which no image is used."""
    homes = {home for path in used for home in path.parents if home.is_relative_to(folder)}
    for beside in {path.parent.parent for path in used} & homes:
        for entry in sorted(os.scandir(beside), key=lambda entry: entry.name):
            if entry.is_dir() and Path(entry.path) not in homes and not _no_data(entry, True):
                name = Path(entry.path).relative_to(folder).as_posix()
                notes.append(f"no image of the folder {printable(name)!r} is used")
