"""What holds for any input: hypothesis looks for one where it does not."""

from pathlib import Path, PureWindowsPath

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data import choose_sides
from lab.bundle import bundle_names, check_student_id
from lab.errors import InputError
from lab.layout import check_name
from lab.recipe import Recipe, load_recipe, parse_setting
from verify.code import read_submission

# (class, digest) of each image. Few digests, so that copies are frequent, within a class and across.
IMAGES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30).map(str)), min_size=20, max_size=80)


def one_line(error):
    assert str(error)
    assert "\n" not in str(error)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(IMAGES, st.integers(0, 2**31 - 1))
def test_every_image_is_on_one_side_and_its_copies_with_it(images, seed):
    images.sort()
    labels, digests = zip(*images)
    try:
        sides = choose_sides(labels, digests, seed)
    except ValueError as error:  # only where the images of a class are copies
        one_line(error)
        label = str(error)[len("class '")]
        others = {digest for name, digest in images if name != label}
        assert len({digest for name, digest in images if name == label} - others) < 2
        return
    assert len(set(zip(digests, sides))) == len(set(digests))
    for label in set(labels):
        own = [side for name, side in zip(labels, sides) if name == label]
        assert set(own) == {"train", "test"}


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_without_copies_the_cut_is_exact_and_no_class_changes_another(sizes, seed):
    labels = [label for label, size in zip("abcde", sizes) for _ in range(size)]
    sides = choose_sides(labels, [str(i) for i in range(len(labels))], seed)
    for label, size in zip("abcde", sizes):
        own = [side for name, side in zip(labels, sides) if name == label]
        assert own.count("train") == size * 70 // 100
        assert own == choose_sides([label] * size, [str(i) for i in range(size)], seed)


NAMES = st.sampled_from([*Recipe().as_dict(), "epoch", ""])
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[1]", "{a=1}"]),
)


@given(NAMES, VALUES)
@example("epochs", "9" * 5000)
@example("dim", "1\nepochs = 2")
@example("learning_rate", "nan")
def test_a_setting_gives_a_recipe_within_its_bounds_or_one_line(name, value):
    try:
        recipe = load_recipe("default", [parse_setting(f"{name}={value}")])
    except InputError as error:
        one_line(error)
    else:
        assert type(recipe.as_dict()[name]) is type(Recipe().as_dict()[name])
        assert recipe.image_size % recipe.patch_size == 0
        assert recipe.as_dict()[name] == recipe.as_dict()[name]  # no NaN


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: f"{t}\nepochs = 3".encode()))
)
def test_a_recipe_file_of_anything_is_a_recipe_or_one_line(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    try:
        assert isinstance(load_recipe(path), Recipe)
    except InputError as error:
        one_line(error)


@given(st.text(max_size=80))
@example("..")
@example("CON/x")
@example("a\n")
def test_an_accepted_student_id_names_files_in_one_folder(text):
    try:
        accepted = check_student_id(text)
    except InputError as error:
        one_line(error)
        return
    for name in bundle_names(accepted):
        assert Path(name).name == name == PureWindowsPath(name).name
        assert not name.startswith((".", "-"))


@given(st.text(max_size=30))
@example("\x1b[2J")
@example("\udcff")
def test_an_accepted_name_can_be_stored_and_shown(text):
    try:
        check_name(text)
    except InputError as error:
        one_line(error)
    else:
        text.encode("utf-8")
        assert not any(ord(c) < 32 or ord(c) == 127 for c in text)


@given(st.text(max_size=60))
@example("SETTINGS = SimpleNamespace(dim=(lambda: 1)())")
@example("SETTINGS = SimpleNamespace(**{})")
@example("SETTINGS = SimpleNamespace(epochs=1, epoch=2)")
@example("SETTINGS = SimpleNamespace(dim=[1])")
@example("def f(:")
def test_reading_a_submitted_program_runs_nothing_and_fails_in_one_line(text):
    head = "PRECISION = torch.float32\nWEIGHTS_PATH = '1_Lab8_Homework.pth'\n"
    try:
        assert isinstance(read_submission(head + text)[0].recipe, Recipe)
    except InputError as error:
        one_line(error)
