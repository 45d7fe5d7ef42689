"""Data sets as people really have them: understood with every file accounted for, or refused in one line."""

import io
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, call, make_folder, refused, striped, zip_folder
from PIL import Image

import data
from lab import archives, files, groups, intake, layout
from lab.errors import InputError
from lab.limits import LIMITS
from lab.recipe import Recipe
from lab.record import Choices
from study import runs

RECIPE = Recipe(image_size=32, patch_size=8)


def draw(path, seed, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    striped(seed % 3, seed).save(path, **how)


def blob(path, size=40, suffix_noise=False):
    """A mask: a bright square on black; as if resized since, with levels between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (size, size))
    image.paste(255, (5, 5, 20, 20))
    (image.rotate(3, Image.Resampling.BICUBIC) if suffix_noise else image).save(path)


def fill(folder, names, count=4, suffix=".png", first=0):
    """`count` pictures for each of `names`, folders below `folder`; each name has pixels of its own."""
    for place, name in enumerate(names):
        for i in range(count):
            draw(folder / name / f"{name.rsplit('/', 1)[-1]}_{i}{suffix}", first + 100 * place + i)
    return folder


def check(path, **choices):
    """The DataFacts of a zip or folder."""
    run = path.parent / f"run of {path.name}"
    source = intake.open_source(path, run)
    return intake.read_images(source, RECIPE, run / "split", choices=Choices(**choices)).facts


def counts(facts):
    return {name: facts.counts["train"][name] + facts.counts["test"][name] for name in facts.classes}


def left(facts):
    return {row.reason: row.files for row in facts.left_out}


# Which folders are classes


SPLITS = [  # folders of pictures -> the classes, with so many folders each
    ("Train/a Train/b Valid/a Test/b", {"a": 2, "b": 2}),
    ("training_set/training_set/a training_set/training_set/b test_set/test_set/a", {"a": 2, "b": 1}),
    ("seg_train/seg_train/a seg_train/seg_train/b seg_pred/seg_pred", {"a": 1, "b": 1}),
    ("train_images/a train_images/b validation_images/b", {"a": 1, "b": 2}),
    ("x/train/inner/a x/train/inner/b x/test/inner/a", {"a": 2, "b": 1}),
    ("bus car train", {"bus": 1, "car": 1, "train": 1}),
    ("d/train/bus d/train/train d/test/bus d/test/train", {"bus": 2, "train": 2}),
    ("train/a train/b test", {"a": 1, "b": 1}),  # the test part has no labels
    ("c1/Train c1/Test c2/Train c2/Test", {"c1": 2, "c2": 2}),
    ("a/Imgs b/Imgs", {"a": 1, "b": 1}),
    ("1 2 10", {"1": 1, "2": 1, "10": 1}),
    ("crack/2024-05-01 crack/2024-05-02 ok/2024-05-01", {"crack": 2, "ok": 1}),
    ("crack/batch1 crack/batch2 ok/batch1", {"crack": 2, "ok": 1}),
]


@pytest.mark.parametrize(("folders", "classes"), SPLITS)
def test_split_folders_are_pooled_and_classes_may_be_called_as_they_are(tmp_path, folders, classes):
    names = folders.split()
    for place, name in enumerate(names):
        for i in range(4):
            draw(tmp_path / "d" / name / f"p{place}_{i}.png", 100 * place + i)
    facts = check(tmp_path / "d")
    assert counts(facts) == {name: 4 * n for name, n in classes.items()}
    lost = 4 * len(names) - sum(counts(facts).values())
    assert left(facts) == ({"beside the class folders": lost} if lost else {})
    assert any("'train' is taken for a class" in note for note in facts.notes) == ("train" in classes)


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ("train/a train/b val/a test/b", "test (4), train (8), val (4) images"),
        ("x/images/train/a x/images/train/b x/images/val/b", "images/train (8), images/val (4) images"),
        ("c1/Train c1/Test c2/Train c2/Test", "Test (8), Train (8) images"),
        ("d/train/bus d/train/train d/test/bus d/test/train", "test (8), train (8) images"),
        ("cat dog test/cat test/dog", "other folders (8), test (8) images"),
        ("images/a images/b", None),
        ("images_1/a images_1/b images_2/a", None),
        ("bus car train", None),
    ],
)
def test_a_ready_made_split_that_is_pooled_is_told_with_its_counts(tmp_path, folders, told):
    notes = [note for note in check(fill(tmp_path / "d", folders.split())).notes if "ready-made" in note]
    words = "the parts of a ready-made split are pooled, and split anew 70/30"
    assert notes == ([f"{words}: {told}"] if told else [])


AMBIGUOUS = [
    (
        "defect/crack defect/dent ok",
        r"'defect' in .* holds folders of its own \(crack, dent\) .* --exclude 'd",
    ),
    (
        "big/big/ok big/big/bad small/train/ok small/train/bad",
        "'big' and 'small' .* both hold folders bad, ok",
    ),
    ("ok bad old/ok", "'old' .* holds folders of its own"),
    ("ok bad d/ok d/bad", "'d' .* holds folders of its own"),
    ("train_images test_images", "no two classes"),
]


@pytest.mark.parametrize(("folders", "message"), AMBIGUOUS)
def test_what_can_be_meant_in_two_ways_is_refused_with_the_choice(tmp_path, folders, message):
    for place, name in enumerate(folders.split()):
        for i in range(4):
            draw(tmp_path / "d" / name / f"{100 * place + i}.png", 100 * place + i)
    with pytest.raises(InputError, match=message):
        check(tmp_path / "d")


def test_the_choice_that_a_refusal_names_works(tmp_path):
    folder = fill(tmp_path / "d", ["big/ok", "big/bad", "small/ok", "small/bad"])
    facts = check(folder, exclude=("big/*",))
    assert counts(facts) == {"bad": 4, "ok": 4}
    assert left(facts) == {"--exclude": 8}


def test_folders_that_are_not_classes_are_said(tmp_path):
    folder = fill(tmp_path / "d", ["crack/old", "ok"])
    draw(folder / "crack" / "x.png", 900)
    (folder / "dent").mkdir()
    notes = check(folder, exclude=("nothing*",)).notes
    assert notes == [
        "--exclude 'nothing*' fits no file",
        "folders below the class 'crack' belong to it (old)",
        "no image of the folder 'dent' is used",
    ]


def test_cats_dots_and_cameras_in_file_names(tmp_path):
    for i in range(6):
        draw(tmp_path / "d" / f"{('cat', 'dog')[i % 2]}.{i}.png", i)
        draw(tmp_path / "e" / f"{('IMG', 'DSC')[i % 2]}_{i}.png", i)
    assert counts(check(tmp_path / "d")) == {"cat": 3, "dog": 3}
    with pytest.raises(InputError, match="give no classes"):
        check(tmp_path / "e")


def test_no_class_is_made_of_digits_dates_or_hashes(tmp_path):
    for names in (
        ["1.png", "2.png", "3.png", "4.png"],
        ["20240101_1.png", "20240102_2.png", "20240103_3.png"],
    ):
        folder = tmp_path / names[0]
        for i, name in enumerate(names):
            draw(folder / name, i)
        with pytest.raises(InputError, match="no two classes"):
            check(folder)
    for i in range(12):
        draw(tmp_path / "hashes" / f"{i * 7919 + 10**6:x}a{i}.png", i)
    with pytest.raises(InputError, match="give no classes"):
        check(tmp_path / "hashes")


# What is no picture of a class


def test_masks_are_left_out_and_counted_by_what_shows_them(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"], suffix=".jpg")
    for i in range(4):
        blob(folder / "a" / f"a_{i}.png", suffix_noise=i > 1)
        blob(folder / "a" / "Label" / f"a_{i}_label.png")
        draw(folder / "b" / f"b_{i}_GT.jpg", 900 + i)  # its name is enough
        blob(folder / "ground_truth" / "b" / f"b_{i}_mask.png")
    facts = check(folder)
    assert counts(facts) == {"a": 4, "b": 4}
    assert left(facts) == {
        "look like masks (.png of few levels beside a .jpg of the same name)": 4,
        "look like masks (in a folder Label)": 4,
        "look like masks (in a folder ground_truth)": 4,
        "look like masks or templates (called *_gt)": 4,
    }


def test_include_and_exclude_overrule(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"])
    for i in range(4):
        draw(folder / "b" / f"b_{i}_mask.png", 900 + i)
    assert counts(check(folder)) == {"a": 4, "b": 4}
    assert counts(check(folder, include=("*_mask.png",))) == {"a": 4, "b": 8}
    facts = check(folder, include=("b",), exclude=("b_0*",))
    assert counts(facts) == {"a": 4, "b": 6}
    assert left(facts) == {"--exclude": 2}


def test_classes_may_be_called_mask_and_no_mask(tmp_path):
    facts = check(fill(tmp_path / "d", ["mask", "no_mask"]))
    assert counts(facts) == {"mask": 4, "no_mask": 4}


def test_a_class_called_label_is_one_also_where_all_number_their_pictures(tmp_path):
    for place, name in enumerate(["cap", "bottle", "label"]):
        for i in range(4):
            draw(tmp_path / "d" / name / f"{i:03}.png", 100 * place + i)
    assert counts(check(tmp_path / "d")) == {"bottle": 4, "cap": 4, "label": 4}
    # Beside one class alone they may be its masks; the refusal names the way out.
    (tmp_path / "d" / "cap").rename(tmp_path / "cap")
    with pytest.raises(InputError, match=r"4 files look like masks: .* add --include 'label/\*'"):
        check(tmp_path / "d")
    assert counts(check(tmp_path / "d", include=("label/*",))) == {"bottle": 4, "label": 4}


def test_masks_of_many_levels_are_known_by_the_one_picture_of_their_name(tmp_path):
    for name in ("a", "b"):
        for i in range(4):
            draw(tmp_path / "d" / "images" / name / f"{i}.png", i + 10 * (name == "b"))
            draw(tmp_path / "d" / "masks" / name / f"{i}.png", 500 + i + 10 * (name == "b"))
    facts = check(tmp_path / "d")
    assert counts(facts) == {"a": 4, "b": 4} and left(facts) == {"look like masks (in a folder masks)": 8}


def test_every_other_file_is_counted_by_reason(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"], 21)
    (folder / "notes.txt").write_text("x")
    (folder / "a" / "a.xml").write_text("<a/>")
    (folder / ".hidden").mkdir()
    draw(folder / ".hidden" / "a.png", 1)
    (folder / "a" / "._a_1.png").write_bytes(b"x")
    draw(folder / "beside.png", 500)
    (folder / "venv").mkdir()
    (folder / "venv" / "pyvenv.cfg").touch()
    draw(folder / "venv" / "lib" / "logo.png", 2)
    fill(folder / "lib" / "site-packages" / "images", ["x"])
    (folder / "outputs" / "s1" / "run").mkdir(parents=True)
    (folder / "outputs" / "s1" / "run" / "record.json").touch()
    draw(folder / "outputs" / "s1" / "run" / "a.png", 3)
    (folder / "c").mkdir()
    (folder / "c" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "a" / "more.zip").write_bytes(b"PK")
    (folder / "b" / "page.png").write_text("<html>")
    facts = check(folder)
    assert counts(facts) == {"a": 21, "b": 21}
    assert left(facts) == {
        "hidden or of the system": 2,
        "not images (.txt)": 1,
        "not images (.xml)": 1,
        "beside the class folders": 1,
        "in an environment of Python or Node": 6,
        "output of this program": 2,
        ".heic, which is not read here: convert them to JPEG or PNG": 1,
        "archives, beside images that are not packed": 1,
    }
    assert [(u.file, u.reason) for u in facts.unreadable] == [
        ("b/page.png", "OSError: it is a web page or other text")
    ]
    assert "no image of the folder 'c' is used" in facts.notes


def test_check_says_all_of_it_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = fill(tmp_path / "d", ["a", "b"])
    (folder / "notes.txt").write_text("x")
    (folder / "b" / "again.png").write_bytes((folder / "a" / "a_0.png").read_bytes())
    assert call("--check", "--data", folder) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "class training test",
        "a 2 2 b 3 2 2 classes 5 4",
        "sizes: 40 x 40 (9) modes: L (9) the model is shown: grey, scaled to 200 x 200 pixels",
        "left out: 1 not images (.txt), as notes.txt",
        "the same picture in two classes: a/a_0.png and b/again.png",
    ):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert call("--check", "--data", folder, "--force") == 2
    assert "--check only says how the data are understood: leave --force out" in capsys.readouterr().err


# Labels in a table

TABLES = [  # name, lines, what is named after the file
    ("t.csv", ["image,label", *[f"{i}.png,{'ab'[i % 2]}" for i in range(8)]], ""),
    ("t.csv", ["id;place;class", *[f"{i};x{i % 4};{'ab'[i % 2]}" for i in range(8)]], ""),
    ("t.tsv", ["name\tkind\tgrade", *[f"d/{i}\t{'ab'[i % 2]}\t7" for i in range(8)]], ":name,kind"),
    ("t.txt", [f"d/{i}.png  {'ab'[i % 2]}" for i in range(8)], ""),
    ("t.csv", ["image,a,b", *[f"{i},{1 - i % 2}.0,{i % 2}.0" for i in range(8)]], ""),
    ("t.csv", ["image,age,a,b", *[f"{i},{10 + i},{1 - i % 2},{i % 2}" for i in range(8)]], ""),
    ("t.csv", [f"{i}.png,{'ab'[i % 2]},more" for i in range(8)], ":1,2"),
    ("t.csv", ["path,label", *[f"/home/x/data/{i}.png,{'ab'[i % 2]}" for i in range(8)]], ""),
]


@pytest.mark.parametrize(("name", "lines", "columns"), TABLES)
def test_labels_come_from_a_table(tmp_path, name, lines, columns):
    for i in range(8):
        draw(tmp_path / "d" / f"{i}.png", i)
    (tmp_path / name).write_text("\n".join(lines))
    facts = check(tmp_path / "d", labels=f"{tmp_path / name}{columns}")
    assert counts(facts) == {"a": 4, "b": 4}
    assert facts.from_split and facts.left_out == []


@pytest.mark.parametrize(
    ("encoding", "labels"),
    [("cp1252", "Löcher Rißfläche"), ("cp1252", "Für Grün"), ("gbk", "裂纹 划痕"), ("big5", "裂紋 刮痕"),
     ("utf-8", "裂紋 größe"), ("utf-8-sig", "裂紋 größe"), ("utf-16", "裂紋 größe")],
)  # fmt: skip
def test_labels_in_any_usual_encoding_are_read_as_meant(tmp_path, encoding, labels):
    one, other = labels.split()
    for i in range(8):
        draw(tmp_path / "d" / f"{i}.png", i)
    rows = ["image,label", *[f"{i}.png,{one if i % 2 else other}" for i in range(8)]]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).encode(encoding))
    facts = check(tmp_path / "d", labels=str(tmp_path / "t.csv"))
    assert counts(facts) == {one: 4, other: 4}
    told = [f"t.csv read as {encoding}, which it does not say itself"]
    assert facts.notes == (told if "utf" not in encoding else [])


def test_missing_surplus_and_contradicting_rows_are_named(tmp_path):
    for i in range(10):
        draw(tmp_path / "d" / f"{i}.png", i)
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "d" / "t.csv").write_text(
        "\n".join(["image,label", *rows, "gone.png,a", "0.png,b", "8.png,"])
    )
    facts = check(tmp_path / "d", labels="t.csv")
    assert counts(facts) == {"a": 3, "b": 4}
    assert left(facts) == {
        "with several labels in t.csv": 1,
        "without a label in t.csv": 1,
        "not in t.csv": 1,
    }
    assert "1 rows of t.csv name no image that is there (as 'gone.png')" in facts.notes


def test_each_part_of_a_ready_made_split_may_have_a_table_of_its_own(tmp_path):
    """As Roboflow exports several labels: a column of 0 and 1 for each class, pictures of the same names."""
    folder = tmp_path / "d"
    for place, part in enumerate(("train", "valid", "test")):
        rows = [f"p{i}.png,{i % 2},{1 - i % 2}" for i in range(4)]
        for i in range(4):
            draw(folder / part / f"p{i}.png", 10 * place + i)
        (folder / part / "_classes.csv").write_text("\n".join(["filename, crack, ok", *rows]))
    expected = {f"p{i}.png": ("ok", "crack")[i % 2] for i in range(4)}
    for table in ("_classes.csv", "train/_classes.csv", folder / "train" / "_classes.csv"):
        found = layout.understand(folder, Choices(labels=str(table)))
        assert Counter(path.parent.name for *_, path in found.images) == dict(train=4, valid=4, test=4)
        assert all(label == expected[path.name] for label, _, path in found.images)
        assert not found.left_out
        assert sum(note.startswith("labels are read from") for note in found.notes) == 2
    # A table that is of no part stands alone: it may choose some of the images.
    (tmp_path / "_classes.csv").write_text("filename,crack,ok\ntrain/p0.png,1,0\ntrain/p1.png,0,1")
    found = layout.understand(folder, Choices(labels=str(tmp_path / "_classes.csv")))
    assert [label for label, *_ in found.images] == ["crack", "ok"]
    # Another table changes nothing of what the named one says, and one that cannot be read is told.
    (folder / "_classes.csv").write_text("filename,crack,ok\ntrain/p0.png,1,0\nvalid/p0.png,0,1")
    found = layout.understand(folder, Choices(labels="train/_classes.csv"))
    assert {path.parent.name: label for label, _, path in found.images if path.stem == "p0"}["train"] == "ok"
    (folder / "valid" / "_classes.csv").write_text("{}")
    found = layout.understand(folder, Choices(labels="train/_classes.csv"))
    assert [(row.reason, row.files) for row in found.left_out][:1] == [("not in _classes.csv", 4)]
    assert any("valid/_classes.csv is not read" in note for note in found.notes)


def test_a_table_beside_flat_images_is_named_where_none_was_asked_for(tmp_path):
    for i in range(8):
        draw(tmp_path / "d" / "images" / f"{i}.png", i)
    (tmp_path / "d" / "t.csv").write_text("\n".join(["id,label", *[f"{i},{'ab'[i % 2]}" for i in range(8)]]))
    with pytest.raises(InputError, match=r"the table t\.csv names them: add --labels .*t\.csv"):
        check(tmp_path / "d")
    folder = fill(tmp_path / "e", ["a", "b"])
    (folder / "meta.csv").write_text("\n".join(["id,day", *[f"{n}_{i},1" for n in "ab" for i in range(4)]]))
    assert any("meta.csv names images too; the folders are used" in note for note in check(folder).notes)
    (folder / "meta.csv").write_text('a,"b\n' + "unclosed\n" * 30_000)  # no table that could be read
    assert counts(check(folder)) == {"a": 4, "b": 4}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("image,x,y\n0.png,a,b\n1.png,b,a", "", "which column of .* holds the labels. It has image, x, y"),
        ("image,x\nq.png,a\nr.png,b", "", "no row of .* names an image"),
        ("image,x\n0.png,a\n1.png,b", ":image,z", "has no column 'z': it has image, x"),
        ("image,x\n0.png,a\n1.png,b", ":image", "write FILE, or FILE:image column,label column"),
        ("", "", "is empty"),
        ("PK\x03\x04", "", "is a spreadsheet: save it as CSV"),
        ("image,x\n0.png,a\n1.png,a", "", "gives no two classes"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, text, columns, message):
    for i in range(2):
        draw(tmp_path / "d" / f"{i}.png", i)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        check(tmp_path / "d", labels=f"{tmp_path / 't.csv'}{columns}")


# Archives


def zip_as(path, names, encode):
    """A zip of small pictures under these names, whose bytes are encoded so, without the UTF-8 flag."""

    class Entry(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return self.filename.encode(encode), self.flag_bits & ~0x800

    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            content = io.BytesIO()
            striped(i % 3, i).save(content, "PNG")
            archive.writestr(Entry(name), content.getvalue())
    return path


@pytest.mark.parametrize(
    ("encoding", "classes"),
    [
        ("gbk", ["裂纹", "划痕", "夹杂"]),
        ("big5", ["裂紋", "刮痕", "夾雜"]),
        ("shift_jis", ["キズ", "ひび割れ"]),
        ("euc_kr", ["균열", "긁힘", "함몰", "기포"]),
        ("cp437", ["Kratzer", "Einschlüsse", "größe"]),
        ("cp437", ["Größe", "Rost"]),  # ö and ß are a kanji, too
        ("shift_jis", ["スクラッチ_scratch", "スクラッチ"]),  # all of it Latin letters in DOS' code page
        ("utf-8", ["裂紋", "größe"]),
    ],
)
def test_names_without_the_flag_are_read_by_what_decodes_to_letters(tmp_path, encoding, classes):
    names = [f"{name}/{i}.png" for name in classes for i in range(3)]
    facts = check(zip_as(tmp_path / "d.zip", names, encoding))
    assert facts.classes == sorted(classes)
    assert f"file names of d.zip read as {encoding}, which it does not say itself" in facts.notes
    assert facts.from_split


def test_backslashes_are_folders_and_composed_letters_one_name(tmp_path):
    decomposed = unicodedata.normalize("NFD", "größe")
    names = [f"d\\{name}\\{part}{i}.png" for name in ("größe", "b") for part in "xy" for i in range(2)]
    names = [name.replace("größe", decomposed) if "x" in name else name for name in names]
    facts = check(zip_as(tmp_path / "d.zip", names, "utf-8"))
    assert counts(facts) == {"b": 4, "größe": 4}
    assert "backslashes in the names of d.zip read as folders" in facts.notes


def test_a_class_whose_name_is_written_in_two_ways_is_one(tmp_path):
    for form in ("NFC", "NFD"):
        for i in range(3):
            folder = tmp_path / "d" / form / unicodedata.normalize(form, "größe")
            draw(folder / f"{i}.png", 10 * (form == "NFD") + i)
    fill(tmp_path / "d" / "NFC", ["b"], first=50)
    for form in ("NFC", "NFD"):
        (tmp_path / "d" / form).rename(tmp_path / "d" / {"NFC": "train", "NFD": "test"}[form])
    assert counts(check(tmp_path / "d")) == {"b": 4, "größe": 6}
    names = [unicodedata.normalize(form, "größe/1.png") for form in ("NFC", "NFD")]
    with pytest.raises(InputError, match="one file on many systems"):
        check(zip_as(tmp_path / "d.zip", [*names, "b/1.png"], "utf-8"))


def test_a_tar_and_archives_in_archives_are_read(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"])
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        archive.add(folder, "d")
    assert counts(check(tmp_path / "d.tar.gz")) == {"a": 4, "b": 4}
    inner = zip_folder(folder, tmp_path / "train.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "train.zip")
        archive.write(folder / "a" / "a_0.png", "preview.png")
    facts = check(tmp_path / "outer.zip")
    assert counts(facts) == {"a": 4, "b": 4} and left(facts) == {"beside the class folders": 1}
    assert "unpacked train.zip, which was inside" in facts.notes


def test_archives_in_a_folder_are_named_and_counted(tmp_path):
    (tmp_path / "zips").mkdir()
    for name in "abcdef":
        zip_folder(fill(tmp_path / name, [name]), tmp_path / "zips" / f"{name}.zip")
    facts = check(tmp_path / "zips")
    assert counts(facts) == dict.fromkeys("abcdef", 4)
    assert "unpacked a.zip, b.zip, c.zip, d.zip and 2 more" in facts.notes


def test_the_zips_of_one_set_are_read_together(tmp_path):
    home = tmp_path / "parts"
    home.mkdir()
    for number, name in enumerate("ab", 1):
        zip_folder(fill(tmp_path / f"d{number}", [f"set/{name}"]), home / f"set-{number:03}.zip")
    assert counts(check(home)) == {"a": 4, "b": 4}
    with pytest.raises(InputError, match="is one of 2 zips of one set"):
        check(home / "set-001.zip")


def test_zips_that_share_file_names_are_kept_apart(tmp_path):
    for part, first in (("train", 0), ("test", 300)):  # each in a folder of its own
        zip_folder(fill(tmp_path / f"{part}-d", ["a", "b"], first=first), tmp_path / f"{part}.zip")
        (tmp_path / "d" / part).mkdir(parents=True)
        (tmp_path / f"{part}.zip").rename(tmp_path / "d" / part / "images.zip")
    assert counts(check(tmp_path / "d")) == {"a": 8, "b": 8}
    (tmp_path / "e").mkdir()
    for number in (1, 2, 3):  # no parts of one set
        for i in range(4):
            draw(tmp_path / f"type{number}" / f"{i:03}.png", 100 * number + i)
        zip_folder(tmp_path / f"type{number}", tmp_path / "e" / f"type{number}.zip")
    assert counts(check(tmp_path / "e")) == {"type1": 4, "type2": 4, "type3": 4}
    with tarfile.open(tmp_path / "e" / "type1.tar", "w") as archive:
        archive.add(tmp_path / "type1", ".")
    (tmp_path / "run of e").rename(tmp_path / "before")
    with pytest.raises(InputError, match="as another archive: rename one"):
        check(tmp_path / "e")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_archives_are_counted(tmp_path, kind):
    folder = fill(tmp_path / "d", ["a", "b"])
    path = tmp_path / f"d.{kind}"
    if kind == "zip":
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(zip_folder(folder, path), "a") as archive:
            archive.writestr(link, "/etc/passwd")
    else:
        (folder / "a" / "link.png").symlink_to("a_0.png")
        with tarfile.open(path, "w") as archive:
            archive.add(folder, ".")
    facts = check(path)
    assert counts(facts) == {"a": 4, "b": 4}
    (note,) = (n for n in facts.notes if "links" in n)
    assert note.startswith(f"links in d.{kind} are not followed: 1, as ") and note.endswith("a/link.png")


@pytest.mark.parametrize("inside", ["", "own/"], ids=["flat", "in a folder"])
def test_zips_of_numbered_classes_are_no_parts_of_one(tmp_path, inside):
    (tmp_path / "e").mkdir()
    for number, name in enumerate(("defect1", "defect2", "good")):
        for i in range(4):
            place = tmp_path / name / inside.replace("own", name)
            draw(place / f"{10 * number + i}.png", 10 * number + i)
        zip_folder(tmp_path / name, tmp_path / "e" / f"{name}.zip")
    assert counts(check(tmp_path / "e")) == {"defect1": 4, "defect2": 4, "good": 4}


def test_parts_of_one_class_beside_another_are_put_together(tmp_path):
    (tmp_path / "e").mkdir()
    for number, name in enumerate(("crack-001", "crack-002", "good-001")):
        for i in range(4):
            draw(tmp_path / name / name.partition("-")[0] / f"{10 * number + i}.png", 10 * number + i)
        zip_folder(tmp_path / name, tmp_path / "e" / f"{name}.zip")
    assert counts(check(tmp_path / "e")) == {"crack": 8, "good": 4}


REFUSED = [
    (b"Rar!\x1a\x07\x01\0", "is a RAR archive: unpack it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
    (b"<!DOCTYPE html><html><title>Virus scan warning", "is a web page and not the data"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"", "is empty: fetch it again"),
    (b"PK\x03\x04" + bytes(90), "its end is missing: the download broke off"),
    (b"something else", "cannot read .* as a zip or tar"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_not_read_is_named_for_what_it_is(tmp_path, content, message):
    (tmp_path / "d.zip").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check(tmp_path / "d.zip")


def test_deflate64_split_zips_and_single_images_are_named(tmp_path):
    path = zip_folder(fill(tmp_path / "d", ["a", "b"]), tmp_path / "d.zip")
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        where = content.find(sign)
        while where >= 0:
            content[where + at : where + at + 2] = struct.pack("<H", 9)
            where = content.find(sign, where + 4)
    (tmp_path / "big.zip").write_bytes(content)
    with pytest.raises(InputError, match="packed with Deflate64"):
        check(tmp_path / "big.zip")
    (tmp_path / "d.z01").touch()
    with pytest.raises(InputError, match="is one part of a split zip: join all"):
        check(path)
    with pytest.raises(InputError, match="is one image: name the folder"):
        check(tmp_path / "d" / "a" / "a_0.png")
    huge = b"\x89PNG\r\n\x1a\n"  # of 900 million pixels, which Pillow does not open
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), b"IDAT"):
        huge += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "huge.png").write_bytes(huge)
    with pytest.raises(InputError, match="is one image: name the folder"):
        check(tmp_path / "huge.png")


def test_git_lfs_pointers_are_named(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        (tmp_path / "d" / name).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        )
    with pytest.raises(InputError, match="is a Git LFS pointer in place of an image: run git lfs pull"):
        check(tmp_path / "d")
    (tmp_path / "d" / "a" / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match="it is HEIC or a video whatever its name says"):
        check(tmp_path / "d")


# Pixels


def test_suffixes_and_formats_by_content(tmp_path):
    folder = tmp_path / "d"
    kinds = {
        "webp": "WEBP",
        "jfif": "JPEG",
        "gif": "GIF",
        "pgm": "PPM",
        "JPG": "JPEG",
        "jpg": "PNG",
        "dat": "PNG",
    }
    for i, (suffix, kind) in enumerate(kinds.items()):
        for name in "ab":
            draw(folder / name / f"{name}{i}.{suffix}", 50 * (name == "b") + i, format=kind)
    facts = check(folder)
    assert counts(facts) == {"a": 7, "b": 7} and not facts.unreadable and not facts.left_out
    assert facts.from_split  # for .dat, which only its content shows


def test_one_scale_for_a_whole_set_of_more_than_8_bits(tmp_path):
    for i in range(8):
        values = np.full((16, 16), 2000, np.uint16)
        values[:, 8:] += 20 if i < 4 else 5  # of 65,536: an eighth of what 8 bits can show
        path = tmp_path / "d" / "ab"[i // 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values[i, 0] += 1  # no copies of each other
        Image.fromarray(values).save(path)
    run = tmp_path / "run"
    images = intake.read_images(intake.open_source(tmp_path / "d", run), RECIPE, run / "split")
    assert images.facts.pixel_range == (2000, 2020)
    top = {name: 0 for name in "ab"}
    for file, (pixels, _) in zip(images.train.files, images.train):
        top[file[0]] = int(pixels[0, 16, -3])
    assert top == {"a": 255, "b": 64}  # and the darker class stays dark
    assert any("2000 becomes black and 2020 white" in note for note in images.facts.notes)


def test_float_images_of_0_to_1_keep_their_levels_and_flat_sets_are_refused(tmp_path):
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
        Image.fromarray(np.roll(values, i)).save(path)
    run = tmp_path / "run"
    images = intake.read_images(intake.open_source(tmp_path / "d", run), RECIPE, run / "split")
    assert len(images.train.pixels[0].unique()) > 100
    for i in range(8):
        path = tmp_path / "flat" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 7 + i % 2).save(path)
    with pytest.raises(InputError, match="8 of 8 images are of one flat grey once decoded"):
        check(tmp_path / "flat")


@pytest.mark.filterwarnings("error")
def test_pixels_that_were_not_measured_are_black_and_do_not_take_the_scale(tmp_path):
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.roll(np.linspace(5, 6, 1024, dtype=np.float32), i).reshape(32, 32)
        values[0, :2], values[0, 2] = np.nan, np.inf
        Image.fromarray(values).save(path)
    run = tmp_path / "run"
    images = intake.read_images(intake.open_source(tmp_path / "d", run), RECIPE, run / "split")
    assert images.facts.pixel_range == pytest.approx((5, 6), abs=0.01)
    assert "8 images have pixels that are not numbers: NaN is black, infinity white" in images.facts.notes
    for pixels, _ in images.train:
        assert pixels[0, 0, :3].tolist() == [0, 0, 255]
        assert len(pixels.unique()) > 200


def test_an_image_of_too_many_pixels_is_not_called_damaged(tmp_path):
    for i in range(30):
        draw(tmp_path / "d" / "ab"[i % 2] / f"{i}.png", i)
    huge = bytearray((tmp_path / "d" / "a" / "0.png").read_bytes())
    huge[16:24] = struct.pack(">II", 14000, 14000)  # what its header says of width and height
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    (tmp_path / "d" / "a" / "huge.png").write_bytes(huge)
    (huge,) = check(tmp_path / "d").unreadable
    assert "it has more than 179 million pixels" in huge.reason


def test_classes_that_differ_in_spaces_alone_are_refused(tmp_path):
    for i in range(12):
        draw(tmp_path / "d" / ("edge crack", "edge  crack", "good")[i % 3] / f"{i}.png", i)
    with pytest.raises(InputError, match="'edge  crack' and 'edge crack' differ only in case or spaces"):
        check(tmp_path / "d")


def test_transparency_is_laid_on_white_and_pages_are_said(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.save(tmp_path / "x.png")
    assert np.asarray(data.decode(tmp_path / "x.png", 1))[0].tolist() == [0] * 4 + [255] * 4
    for i in range(8):
        draw(tmp_path / "d" / "ab"[i % 2] / f"{i}.tif", i, save_all=True, append_images=[striped(1, 50 + i)])
    notes = check(tmp_path / "d").notes
    assert any("8 files have several pages or frames: the first is read" in note for note in notes)
    for path in (tmp_path / "d").rglob("*.tif"):
        Image.open(path).convert("RGBA").save(path)
    notes = check(tmp_path / "d").notes
    assert "8 images with an alpha channel are laid on white, where they are transparent" in notes


def test_colours_and_long_pictures_are_noted(tmp_path):
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        striped(i, i, 60).convert("RGB").resize((120, 30)).point(lambda v: v // 2 + 9).save(path)
    assert not any("colour" in note for note in check(tmp_path / "d").notes)  # grey in three channels
    for path in (tmp_path / "d").rglob("*.png"):
        red, green, _ = Image.open(path).split()
        Image.merge("RGB", (red, green, green.point(lambda v: 0))).save(path)
    facts = check(tmp_path / "d")
    assert any("8 of 8 images looked at have colours and are shown in grey" in note for note in facts.notes)
    assert any("long pictures (120 x 30) are squashed" in note for note in facts.notes)
    assert facts.presented == "grey, squashed to 32 x 32 pixels"


def test_cut_off_files_are_refused_also_where_weasyprint_was_imported_first(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"], 20, suffix=".jpg")
    whole = (folder / "a" / "a_3.jpg").read_bytes()
    (folder / "a" / "a_3.jpg").write_bytes(whole[: len(whole) // 2])
    program = (
        "import sys, weasyprint; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from lab import intake; from lab.recipe import Recipe; folder = Path(sys.argv[2]); "
        "images = intake.read_images(intake.Source(folder, 'folder', 'd'), Recipe(), sys.argv[3]); "
        "print([u.file for u in images.facts.unreadable])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, ROOT, folder, tmp_path / "s"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "['a/a_3.jpg']\n"
    assert [u.file for u in check(folder).unreadable] == ["a/a_3.jpg"]


# Images of one thing


def side_of(images):
    """{file: side} of both splits."""
    return {f: side for side, part in (("train", images.train), ("test", images.test)) for f in part.files}


def test_versions_and_near_copies_stay_on_one_side(tmp_path):
    folder = tmp_path / "d"
    for name in "ab":
        for i in range(10):
            picture = striped(0, 60 * (name == "b") + i)
            for version in range(3):
                path = (
                    folder / ("train", "valid")[i % 2] / name / f"{name}{i}_jpg.rf.{i * 3 + version:010x}.png"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.rotate(90 * version).save(path)
    for i in range(3):  # brighter, and saved with losses: other bytes, the same picture
        twin = folder / "train" / "a" / f"twin {i}.jpg"
        picture = Image.open(folder / "train" / "a" / f"a{2 * i}_jpg.rf.{6 * i:010x}.png")
        picture.point(lambda v: v * 0.8 + 30).save(twin, quality=95)
    run = tmp_path / "run"
    images = intake.read_images(intake.open_source(folder, run), RECIPE, run / "split")
    sides = side_of(images)
    for name in "ab":
        for i in range(10):
            assert len({s for f, s in sides.items() if f"{name}{i}_jpg.rf" in f}) == 1
    for i in range(3):
        assert sides[f"a/twin {i}.jpg"] == sides[f"a/a{2 * i}_jpg.rf.{6 * i:010x}.png"]
    versions, near = images.facts.kept_together
    assert (versions.groups, versions.images) == (20, 60)
    assert "near copies" in near.reason and near.groups == 3
    assert images.facts.from_split


@pytest.mark.parametrize(
    "names",
    [("train_ok", "test_ok", "train_bad"), ("crack_train", "crack_val", "dent"), ("trainA", "testA"),
     ("训练集", "测试集"), ("traincrop", "testcrop", "valcrop")],
)  # fmt: skip
def test_a_part_of_a_split_in_the_names_of_classes_is_refused(tmp_path, names):
    make_folder(tmp_path / "d", dict.fromkeys(names, 4))
    with pytest.raises(InputError, match="called as parts of a ready-made split: put the images"):
        layout.understand(tmp_path / "d", Choices())


def test_one_class_that_begins_as_a_part_of_a_split_stays(tmp_path):
    make_folder(tmp_path / "d", {"train": 4, "bus": 4, "testbench": 4})
    assert {label for label, _, _ in layout.understand(tmp_path / "d", Choices()).images} == {
        "train", "bus", "testbench",
    }  # fmt: skip


def test_masks_are_found_by_the_pictures_beside_them_whatever_their_folder_is_called(tmp_path):
    for kind, name in enumerate(("crack", "dent")):
        for i in range(5):
            draw(tmp_path / "d" / "pictures" / f"{name}_{i}.png", 3 * i + kind)
            blob(tmp_path / "d" / "bw" / f"{name}_{i}.png")
    found = layout.understand(tmp_path / "d", Choices())
    assert Counter(label for label, _, _ in found.images) == {"crack": 5, "dent": 5}
    assert [row.told for row in found.left_out] == [
        "left out: 10 look like masks (called as the pictures in pictures), as bw/crack_0.png"
    ]
    kept = layout.understand(tmp_path / "d", Choices(include=("bw",)))  # where they are a class
    assert {label for label, _, _ in kept.images} == {"pictures", "bw"}


def test_a_class_of_flat_pictures_is_none_of_masks(tmp_path):
    """Numbered alike, as classes are, and of the same kind."""
    for i in range(5):
        draw(tmp_path / "d" / "normal" / f"{i}.png", i)
        blob(tmp_path / "d" / "dark" / f"{i}.png")
    assert Counter(x for x, _, _ in layout.understand(tmp_path / "d", Choices()).images) == {
        "normal": 5,
        "dark": 5,
    }


@pytest.mark.parametrize(
    "name", ["PXL_2024050{}_10{:04}.png", "WhatsApp Image 2024-05-1{} at 10.10.{:02}.png", "cam{}_{:04}.png"]
)
def test_dates_and_cameras_in_the_names_of_files_are_no_classes(tmp_path, name):
    for day in (1, 2):
        for i in range(6):
            draw(tmp_path / "d" / name.format(day, i), i)
    with pytest.raises(InputError, match="give no classes"):
        layout.understand(tmp_path / "d", Choices())


def test_two_versions_of_the_same_pictures_are_asked_about(tmp_path):
    for kind, version in enumerate(("raw", "filtered")):
        for i in range(4):
            draw(tmp_path / "d" / version / f"crack_{i}.png", 3 * i + kind)
    assert "filtered, raw hold pictures of the same names" in " ".join(
        layout.understand(tmp_path / "d", Choices()).notes
    )


def test_groups_that_leave_a_class_whole_or_fit_nothing_are_told(tmp_path):
    make_folder(tmp_path / "d", {"a": 6, "b": 6})
    with pytest.raises(
        InputError, match="--group puts all images of the class 'a' into one group: it takes two"
    ):
        intake.load_images(tmp_path / "d", RECIPE, choices=Choices(group="^[ab]"))
    facts = intake.load_images(tmp_path / "d", RECIPE, choices=Choices(group="(nothing)?a")).facts
    assert "--group fits no part of 12 names" in " ".join(facts.notes)
    make_folder(tmp_path / "d", {"c": 1})  # which is not the pattern's fault
    with pytest.raises(InputError, match="class 'c' has too few different images"):
        intake.load_images(tmp_path / "d", RECIPE, choices=Choices(group=r"\d+"))


def test_what_is_no_table_and_no_archive_is_named_as_the_user_knows_it(tmp_path):
    make_folder(tmp_path / "d", {"a": 4, "b": 4})
    (tmp_path / "labels.json").write_text('{"a_1.png": "x"}')
    with pytest.raises(InputError, match="is JSON and no table"):
        layout.understand(tmp_path / "d", Choices(labels=str(tmp_path / "labels.json")))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.writestr("inner.zip", b"PK no zip")
    with pytest.raises(InputError, match=r"cannot read outer\.zip/inner\.zip as a zip"):
        check(tmp_path / "outer.zip")
    (tmp_path / "two").mkdir()
    zip_folder(make_folder(tmp_path / "c", {"c": 4}), tmp_path / "two" / "c.zip")
    shutil.copy(tmp_path / "outer.zip", tmp_path / "two" / "d.zip")
    with pytest.raises(InputError, match=r"cannot read .*/two/d/inner\.zip as a zip"):
        check(tmp_path / "two")
    with pytest.raises(InputError, match="is an address: download it"):
        intake.open_source("https://example.org/a.zip", tmp_path / "run")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("kos01", "kos02"), True),
        (("batch 1", "batch 2"), True),
        (("1", "2"), False),
        (("2024-05-01", "2024-05-02"), True),
        ("ab", False),
    ],
)
def test_folders_that_only_a_number_tells_apart_are_asked_about(tmp_path, names, told):
    make_folder(tmp_path / "d", dict.fromkeys(names, 4))
    notes = " ".join(intake.load_images(tmp_path / "d", RECIPE).facts.notes)
    assert ("differ in a number alone: if these are batches or parts" in notes) is told


def test_augmented_pictures_stay_with_what_they_were_made_from(tmp_path):
    for kind, name in enumerate(("crack", "dark_spot")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(10):
            picture = striped(kind, 100 * kind + i)
            picture.save(tmp_path / "d" / name / f"{name}_{i}.png")
            picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "d" / name / f"{name}_{i}_rot90.png")
            picture.transpose(Image.Transpose.ROTATE_180).save(
                tmp_path / "d" / name / f"{name}_{i}-aug-1.png"
            )
    images = intake.load_images(tmp_path / "d", RECIPE)
    sides = side_of(images)
    for name in ("crack", "dark_spot"):
        for i in range(10):
            made = [f"{name}/{name}_{i}{end}.png" for end in ("", "_rot90", "-aug-1")]
            assert len({sides[file] for file in made}) == 1
    (versions,) = images.facts.kept_together
    assert (versions.groups, versions.images) == (20, 60)


def test_names_that_only_sound_augmented_stay_apart(tmp_path):
    """dark_spot_1 is no version of dark, which is not there; nor is 1_crop of the 1 of another class."""
    for kind, name in enumerate(("dark_spot", "crop")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(10):
            file = f"dark_spot_{i}" if kind == 0 else f"dark_spot_{i}_crop"
            striped(kind, 100 * kind + i).save(tmp_path / "d" / name / f"{file}.png")
    assert intake.load_images(tmp_path / "d", RECIPE).facts.kept_together == []


def test_a_large_cluster_of_near_copies_takes_few_links():
    """As frames of a film: each pair of 300 would be 44,850, and ten times as many a hundred times that."""
    rng, first = np.random.default_rng(0), rng_picture()
    pixels = np.stack([first] * 300 + [rng_picture(i + 1) for i in range(100)])
    pixels[:300] += rng.integers(0, 3, pixels[:300].shape, np.uint8)
    found = list(groups.near_copies(pixels, np.arange(400)))
    assert sum(map(len, found)) == 300 * 299 // 2
    assert {tuple(pair) for part in found for pair in part[:, :1].tolist()} <= {(i,) for i in range(300)}
    links = groups._links(found, 400)
    assert len(links) < 10_000 + 1024
    assert len(set(groups._components(links, 400)[:300])) == 1
    assert len(set(groups._components(links, 400))) == 101


def rng_picture(seed=0):
    return np.random.default_rng(seed).integers(0, 250, (1, 40, 40), np.uint8)


def test_group_keeps_together_what_the_user_says(tmp_path):
    folder = tmp_path / "d"
    for i in range(40):
        draw(folder / "ab"[i % 2] / f"coil{i // 4}_{i}.png", i)
    draw(folder / "a" / "other.png", 99)
    run = tmp_path / "run"
    source = intake.open_source(folder, run)
    images = intake.read_images(source, RECIPE, run / "split", choices=Choices(group=r"coil(\d+)_"))
    sides = side_of(images)
    for coil in range(10):
        assert len({side for file, side in sides.items() if f"coil{coil}_" in file}) == 1
    held_out = [runs.fold_of(images.train, 4, number)[1].files for number in range(4)]
    coils = [{file.split("_")[0].split("/")[1] for file in files} for files in held_out]
    assert sum(map(len, coils)) == len(set().union(*coils))  # of a study too, no coil is on both sides
    (kept,) = images.facts.kept_together
    assert (kept.reason, kept.groups, kept.images) == ("--group", 10, 40)
    assert "--group fits no part of 1 names (as a/other.png): each stands alone" in images.facts.notes
    with pytest.raises(InputError, match=r"--group '\(' is not a regular expression"):
        check(folder, group="(")


def test_pictures_of_one_fixed_camera_are_not_taken_for_copies(tmp_path):
    """All alike but for a small defect: what they share says nothing."""
    rng = np.random.default_rng(0)
    scene = rng.normal(120, 60, (40, 40))
    for i in range(40):
        picture = scene + rng.normal(0, 4, scene.shape)
        if i % 2:
            picture[i // 2 : i // 2 + 4, 10:14] = 250
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    facts = check(tmp_path / "d")
    assert facts.kept_together == [] and facts.notes == []


def test_a_set_that_groups_would_not_let_split_says_so(tmp_path):
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        striped(i % 2, 5).point(lambda v, i=i: v + i).save(path)
    facts = check(tmp_path / "d")
    assert counts(facts) == {"a": 4, "b": 4}
    assert any("are so alike that their classes could not be split" in note for note in facts.notes)


def test_names_too_long_are_named_with_a_remedy(tmp_path, capsys):
    for i in range(8):
        draw(tmp_path / "t" / f"{i}.png", i)
    label = "\N{CJK UNIFIED IDEOGRAPH-88C2}" * 90  # 270 bytes
    (tmp_path / "t.csv").write_text("\n".join(f"{i}.png,{label if i % 2 else 'b'}" for i in range(8)))
    said = refused(capsys, "--check", "--data", tmp_path / "t", "--labels", tmp_path / "t.csv")
    assert "File name too long" in said and "shorten the name of the class" in said
    zip_as(tmp_path / "d.zip", [f"a/{'x' * 300}.png"], "utf-8")
    with pytest.raises(InputError, match=r"File name too long.*shorten or rename"):
        check(tmp_path / "d.zip")


def test_a_folder_of_very_many_files_is_refused_at_once(tmp_path):
    for i in range(30):
        (tmp_path / "d" / f"{i}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "d" / f"{i}.txt").touch()
    with pytest.raises(InputError, match=r"holds 30 files, more than 20"):
        intake.open_source(tmp_path / "d", tmp_path / "run", LIMITS._replace(images=20))


def test_folders_without_end_and_pictures_too_large_are_bounded(tmp_path, monkeypatch):
    deep = tmp_path / "deep"
    for _ in range(70):
        deep = deep / "n"
    draw(deep / "a.png", 1)
    with pytest.raises(InputError, match="holds folders more than 64 deep"):
        check(tmp_path / "deep")
    folder = fill(tmp_path / "d", ["a", "b"], 21)
    Image.new("L", (101, 100)).save(folder / "a" / "large.png")
    monkeypatch.setattr(intake, "MOST_PIXELS", 10_000)
    assert [u.file for u in check(folder).unreadable] == ["a/large.png"]


def test_probe_opens_no_format_that_starts_another_program(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert layout.probe(tmp_path / "x.png") is None
    assert archives.is_image_name("x.png")


def test_a_row_that_fits_two_images_is_refused(tmp_path):
    for part in "xy":
        for i in range(4):
            draw(tmp_path / "d" / part / f"{i}.png", i + 10 * (part == "y"))
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *[f"{i}.png,{'ab'[i % 2]}" for i in range(4)]]))
    with pytest.raises(InputError, match=r"'0\.png' in .* fits 'x/0\.png' and 'y/0\.png'"):
        check(tmp_path / "d", labels=str(tmp_path / "t.csv"))
    rows = [f"{part}/{i}.png,{'ab'[i % 2]}" for part in "xy" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    assert counts(check(tmp_path / "d", labels=str(tmp_path / "t.csv"))) == {"a": 4, "b": 4}


def test_no_two_images_get_one_name_and_no_original_is_written_over(tmp_path):
    """Folders 2024-01 and 2024/01, a name that looks like a path, and two that differ only in case."""
    folder = tmp_path / "d"
    places = ["crack/2024-01/0.png", "crack/2024/01/0.png", "crack/3/1.PNG", "crack/4/1.png"]
    places += ["crack/5/7.png", "crack/6/7.png", "crack/crack-5-7.png", *(f"ok/{i}.png" for i in range(6))]
    for seed, place in enumerate(places):
        draw(folder / place, 50 + seed)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert counts(check(folder)) == {"crack": 7, "ok": 6}
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    split = [path for path in (tmp_path / "run of d" / "split").rglob("*") if path.suffix.lower() == ".png"]
    assert len({path.relative_to(tmp_path).as_posix().lower() for path in split}) == 13
    assert {path.read_bytes() for path in split} == set(before.values())
    with pytest.raises(InputError, match="two images would be called"):
        files.place(folder / "ok/1.png", split[0])
    assert split[0].read_bytes() in before.values()


def test_what_stands_beside_the_parts_of_a_split_is_no_class(tmp_path):
    parts = [f"{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")]
    folder = fill(tmp_path / "d", [*parts, "single_prediction"])
    for i in range(3):
        draw(folder / "val" / f"{i}.png", 2000 + i)  # without classes
    facts = check(folder)
    assert counts(facts) == {"cat": 8, "dog": 8}
    assert left(facts) == {"beside the class folders": 7}
    twice = fill(tmp_path / "x", [f"xray/{part}" for part in parts])
    fill(twice, [f"xray/xray/{part}" for part in parts])
    facts = check(twice)
    assert counts(facts) == {"cat": 8, "dog": 8}
    assert left(facts) == {"beside the class folders": 16}
    pooled = fill(tmp_path / "p", ["cat", "dog", "bird", "test/cat", "test/dog"])
    assert counts(check(pooled)) == {"bird": 4, "cat": 8, "dog": 8}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["set - training/0", "set - training/1", "set - testing/0", "set - testing/1"], "ready-made split"),
        (["[1]/a", "[1]/b", "[2]/a", "[2]/b"], r"--exclude '\[\[\]1\]/\*'"),
    ],
)
def test_parts_that_are_not_known_as_such_are_refused(tmp_path, folders, message):
    with pytest.raises(InputError, match=message):
        check(fill(tmp_path / "d", folders))


def test_parts_in_the_names_of_files_are_no_classes(tmp_path):
    for part in ("train", "val"):
        for i in range(6):
            draw(tmp_path / "d" / "images" / part / f"{part}_{i:04}.png", 100 * len(part) + i)
    with pytest.raises(InputError, match="give no classes"):
        check(tmp_path / "d")
    assert counts(check(fill(tmp_path / "e", ["train_data/0", "train_data/1", "test_data/0", "test_data/1"])))


def test_numbered_masks_and_pictures_of_16_bits_beside_8(tmp_path):
    folder = fill(tmp_path / "d", ["benign", "normal"], 5)
    for number in ("", "_1", "-2"):
        blob(folder / "benign" / f"benign_0_mask{number}.png")
    facts = check(folder)
    assert counts(facts) == {"benign": 5, "normal": 5}
    assert left(facts) == {"look like masks or templates (called *_mask)": 3}
    for i in range(5):  # 12 of 16 bits: brighter than white, where they are clipped
        values = np.asarray(striped(i, i)).astype(np.uint16) * 16
        Image.fromarray(values).save(folder / "normal" / f"normal_{i}.tif")
    assert counts(check(folder))["normal"] == 10


def test_colours_of_16_bits_are_read_as_8_and_counted(tmp_path):
    folder = fill(tmp_path / "d", ["a", "b"], 5)
    rows = b"".join(b"\0" + struct.pack(">48H", *range(y, 48 * 1000, 1000)) for y in range(16))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    png = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (folder / "a" / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert any(
        "of 1 images with 16 bits a colour the upper 8 are read" in note for note in check(folder).notes
    )


def test_names_that_lead_out_of_an_archive_are_counted(tmp_path):
    fill(tmp_path / "d", ["a", "b"], 5)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in sorted((tmp_path / "d").rglob("*.png")):
            archive.write(path, f"../{path.parent.name}/{path.name}")
    facts = check(tmp_path / "d.zip")
    assert counts(facts) == {"a": 5, "b": 5}
    assert "10 names in d.zip lead out of it: their ../ or first / was left away" in facts.notes


def test_kinds_of_images_are_told_in_the_same_order_whatever_thread_was_first():
    assert intake._counted("bcaac") == intake._counted("acbca") == [("a", 2), ("c", 2), ("b", 1)]


def test_a_column_of_row_numbers_names_no_images(tmp_path):
    """0.png to 11.png, in a shuffled table with pandas' index; and labels 1 and 2 before the names."""
    folder, rng = tmp_path / "d", np.random.default_rng(0)
    for i in range(12):
        draw(folder / f"{i}.png", 70 + i)
    order = rng.permutation(12)
    rows = [f"{row},{i}.png,{'ab'[i % 2]}" for row, i in enumerate(order)]
    (tmp_path / "t.csv").write_text("\n".join([",filename,label", *rows]))
    labels = labels_of(tmp_path / "t.csv", folder)
    assert labels == {f"{i}.png": "ab"[i % 2] for i in range(12)}
    rows = [f"{1 + i % 2},{i}.png" for i in order]
    (tmp_path / "u.csv").write_text("\n".join(["label,filename", *rows]))
    labels = labels_of(tmp_path / "u.csv", folder)
    assert labels == {f"{i}.png": str(1 + i % 2) for i in range(12)}


def labels_of(table, folder):
    found = layout.understand(folder, Choices(labels=str(table)))
    return {name: label for label, name, _ in found.images}


def test_rows_of_another_part_and_paths_of_another_machine(tmp_path):
    folder = fill(tmp_path / "d", ["cat", "dog"], 3)
    for name in ("cat", "dog"):
        for i in range(3):
            (folder / name / f"{name}_{i}.png").rename(folder / name / f"{i}.png")
    rows = [f"/content/data/{name}/{i}.png,{name.upper()}" for name in ("cat", "dog") for i in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = layout.understand(folder, Choices(labels=str(tmp_path / "t.csv")))
    assert {(label, path.parent.name) for label, _, path in found.images} == {("CAT", "cat"), ("DOG", "dog")}
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(3)]
    rows += [f"{name}/{i}.png,other" for name in ("hen", "cow") for i in range(3)]
    (tmp_path / "u.csv").write_text("\n".join(["path,label", *rows]))
    found = layout.understand(folder, Choices(labels=str(tmp_path / "u.csv")))
    assert [label for label, _, _ in found.images] == ["cat"] * 3 + ["dog"] * 3
    assert any(note.startswith("6 rows of u.csv name no image") for note in found.notes)


def test_labels_of_a_table_can_be_shown(tmp_path):
    folder = fill(tmp_path / "d", ["a"], 8)
    rows = [f"a_{i}.png,{'x' if i % 2 else chr(27) + '[2Jy'}" for i in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(InputError, match="control characters"):
        check(folder, labels=str(tmp_path / "t.csv"))


def test_folders_of_digits_beside_a_table_are_a_choice(tmp_path):
    folder = fill(tmp_path / "d", ["0", "1"])
    rows = [f"{k}/{k}_{i}.png,{'ok' if k else 'crack'}" for k in (0, 1) for i in range(4)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(InputError, match=r"--labels .*labels.csv, or --exclude 'labels.csv'"):
        check(folder)
    assert counts(check(folder, exclude=("labels.csv",))) == {"0": 4, "1": 4}
    assert counts(check(folder, labels=str(folder / "labels.csv"))) == {"crack": 4, "ok": 4}


def test_messages_name_a_folder_as_it_was_given(tmp_path, monkeypatch):
    fill(tmp_path, ["a"])
    monkeypatch.chdir(tmp_path)
    source = intake.open_source(".", tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot read the table no\.such\.csv"):
        intake.read_images(source, RECIPE, tmp_path / "run" / "split", choices=Choices(labels="no.such.csv"))


def test_what_lies_beside_archives_is_counted(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("crack", "ok"):
        zip_folder(fill(tmp_path / name, [name]) / name, tmp_path / "d" / f"{name}.zip")
    fill(tmp_path / "d", ["scratch"], 3)
    notes = check(tmp_path / "d").notes
    said = "3 files beside the archives are not used (as scratch/scratch_0.png): unpack all to use them"
    assert said in notes
