"""Labels in a table: `--labels FILE` or `--labels FILE:IMAGE COLUMN,LABEL COLUMN`."""

import codecs
import csv
import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

import data
from lab.archives import decode_names
from lab.errors import InputError
from lab.files import name_images

TABLES = (".csv", ".tsv", ".txt")
LABEL_COLUMN = re.compile(r"(?i)labels?|class(es)?|class_?(name|id)|category|target|defect|type|dx")
MOST = 50e6  # bytes of a table that is read


def _read_rows(path):
    """(rows of a table, its encoding if that was guessed). InputError if it has none.

    The rows are split at commas, semicolons or tabs, else at white space.
    """
    try:
        if path.stat().st_size > MOST:
            raise InputError(f"{path} is too large for a table of labels ({MOST / 1e6:.0f} MB are read)")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error.strerror}") from None
    if content[:2] == b"PK" or content[:4] == b"\xd0\xcf\x11\xe0":
        raise InputError(f"{path} is a spreadsheet: save it as CSV and name that")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text, encoding = content.decode("utf-16", "replace"), None
    else:
        (text,), encoding = decode_names([content.removeprefix(codecs.BOM_UTF8)])
    if text.lstrip()[:1] in ("{", "["):
        raise InputError(f"{path} is JSON and no table: write the image and its label in each row of a CSV")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"the table {path} is empty")
    mark = max(",;\t", key=lines[0].count)
    if mark in lines[0]:
        try:
            rows = list(csv.reader(lines, delimiter=mark))
        except csv.Error as error:  # an unclosed quotation mark
            raise InputError(f"cannot read the table {path}: {error}") from None
    else:
        rows = [re.findall(r'"[^"]*"|\S+', line) for line in lines]
    return [[cell.strip().strip('"') for cell in row] for row in rows], encoding


def _index(folder, paths, table):
    """{what a table may call it: [images]}: its path from the data or from the table, its name, its stem.

    From the table goes first: train/labels.csv means the 1.png beside it, not that of test."""
    found, beside, home = defaultdict(list), defaultdict(list), table.resolve().parent
    for path in paths:
        whole = (folder / path).resolve()
        places = [(found, {path.as_posix(), path.name})]
        if whole.is_relative_to(home):
            places.append((beside, {whole.relative_to(home).as_posix()}))
        for index, names in places:
            for name in names | {PurePosixPath(name).with_suffix("").as_posix() for name in names}:
                index[name.casefold()].append(path)
    return found | beside


def _key(cell):
    """A cell as the index has paths."""
    return re.sub(r"^(\./)+", "", cell.replace("\\", "/")).casefold()


def _find(cell, index):
    """The images that a cell of a table may mean: by its path, else by as many of its last parts as fit."""
    key = _key(cell)
    while key not in index and "/" in key:
        key = key.partition("/")[2]
    return index.get(key, [])


def table_beside(folder, files, paths):
    """The first table below a folder that names at least half of its images; None if there is none."""
    for file in [file for file in files if file.suffix.lower() in TABLES][:20]:
        try:
            rows, _ = _read_rows(folder / file)
        except InputError:
            continue
        if 2 * len(rows) < len(paths):
            continue
        index = _index(folder, paths, folder / file)
        for column in range(min(8, len(rows[-1]))):
            cells = {row[column] for row in rows if len(row) > column}
            named = {path for cell in cells for path in _find(cell, index)}
            if len(rows[-1]) > 1 and 2 * len(named) >= len(paths):
                return folder / file
    return None


def _parse(text):
    """(the table's path, the columns that were named or None) of the value of --labels."""
    name, _, columns = text.rpartition(":")
    if Path(text).exists() or not name:
        return Path(text), None
    image, comma, label = columns.partition(",")
    if not comma:
        raise InputError(f"--labels {text}: write FILE, or FILE:image column,label column")
    return Path(name), (image.strip(), label.strip())


def _column(header, name, table):
    """The place of a column that was named, or numbered from 1."""
    if name in header:
        return header.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise InputError(f"{table} has no column {name!r}: it has {', '.join(header[:12])}")


def _label_column(header, image, table):
    others = [i for i in range(len(header)) if i != image]
    named = [i for i in others if LABEL_COLUMN.fullmatch(header[i])]
    if len(named) == 1 or len(others) == 1:
        return (named or others)[0]
    raise InputError(
        f"which column of {table} holds the labels? It has {', '.join(header[:12])}: write "
        f"--labels '{table}:{header[image]},NAME'"
    )


def _names_images(cells, index):
    """How well the cells of a column name images, to compare: a number of rows may name one too, "7" of
    7.png, but not as "7.png" does; and a class that is called 1 names one image over and over."""
    found = [paths for cell in cells if (paths := _find(cell, index))]
    with_suffix = sum(bool(PurePosixPath(cell.replace("\\", "/")).suffix) for cell in cells)
    return len(found), len({path for paths in found for path in paths}), with_suffix


def _columns(rows, index, named, table):
    """(rows without a header, the image column, the function that gives a row's label)."""
    width = max(map(len, rows))
    rows = [row + [""] * (width - len(row)) for row in rows]
    image = max(range(width), key=lambda i: _names_images([row[i] for row in rows], index))
    has_header = not _find(rows[0][image], index)
    header = rows[0] if has_header else [str(i + 1) for i in range(width)]
    rows = rows[has_header:]
    if named:
        image = _column(header, named[0], table)
    if not any(_find(row[image], index) for row in rows):
        raise InputError(f"no row of {table} names an image of the data: check --labels and --data")
    if named:
        label = _column(header, named[1], table)
        return rows, image, lambda row: row[label]
    # A column of 0 and 1 for each class, as ISIC has them, may stand beside others.
    others = [i for i in range(width) if i != image]
    marks = [i for i in others if all(re.fullmatch(r"([01](\.0*)?)?", row[i]) for row in rows)]
    if len(marks) > 1 and all(sum(row[i][:1] == "1" for i in marks) == 1 for row in rows):
        return rows, image, lambda row: next(header[i] for i in marks if row[i][:1] == "1")
    label = _label_column(header, image, table)
    return rows, image, lambda row: row[label]


def read_labels(text, folder, paths, files, left_out, notes):
    """(the tables, sorted (class, name, path) of the images that they label); others go into `left_out`.

    Of a ready-made split each part may have a table: with one those of the others are read, too, for the
    images below their folder that have no row yet. InputError where the table or its columns cannot be
    told, or a row fits several images.
    """
    table, named = _parse(text)
    if not table.exists():  # a place in the data, or the name of a file of it
        same = (path for path in files if path.name == str(table))
        table = folder / (table if (folder / table).exists() else next(same, table))
    labels = _read_table(table, named, folder, paths, notes)
    tables = [table]
    for path in _other_parts(table, folder, files):
        rest = [p for p in paths if p not in labels and p.is_relative_to(path.parent)]
        if rest:
            try:
                labels |= _read_table(folder / path, named, folder, rest, notes)
            except InputError as error:
                notes.append(f"{path} is not read, though called as the table: {error}")
                continue
            tables.append(folder / path)
            notes.append(f"labels are read from {path}, too")
    images = []
    for path in paths:
        found = labels.get(path, set())
        if len(found) == 1 and (label := next(iter(found))) not in ("", ".", ".."):
            images.append((label, path))
        else:
            why = "with several labels" if len(found) > 1 else "without a label" if found else "not"
            left_out[f"{why} in {table.name}"].append(path)
    if len({label for label, _ in images}) < 2:
        raise InputError(f"{table} gives no two classes: name the columns, --labels '{table}:image,label'")
    return tables, name_images([(label, folder / path) for label, path in images], folder)


def _other_parts(table, folder, files):
    """The tables of the same name in other parts of a ready-made split, where this one is of a part."""
    same = [path for path in files if path.name == table.name and re.fullmatch(data.SPLIT, path.parent.name)]
    here = [path for path in same if (folder / path).resolve() == table.resolve()]
    return [path for path in same if path not in here] if here else []


def _read_table(table, named, folder, paths, notes):
    """{path: its labels} of the images that a table names."""
    index = _index(folder, paths, table)
    rows, encoding = _read_rows(table)
    if encoding not in (None, "utf-8"):
        notes.append(f"{table.name} read as {encoding}, which it does not say itself")
    rows, image, label_of = _columns(rows, index, named, table)
    labels, gone = defaultdict(set), []
    exact = {path for row in rows for path in index.get(_key(row[image]), [])}
    for row in rows:
        fits = _find(row[image], index)
        if _key(row[image]) not in index:  # test/1.png is not the train/1.png that has a row of its own
            fits = [path for path in fits if path not in exact]
        if len(fits) > 1:
            raise InputError(
                f"{row[image]!r} in {table} fits {fits[0].as_posix()!r} and {fits[1].as_posix()!r}: write "
                "the folders in the table too, or leave one out with --exclude"
            )
        gone += [] if fits else [row[image]]
        for path in fits:
            label = unicodedata.normalize("NFC", label_of(row).strip())
            labels[path].add(label.replace("/", "-"))
    if gone:
        notes.append(f"{len(gone)} rows of {table.name} name no image that is there (as {gone[0][:80]!r})")
    return labels
