"""What holds for any input: hypothesis looks for one where it does not."""

from pathlib import Path, PureWindowsPath

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bundle import bundle_names, check_student_id
from data import check_name, split_names
from recipe import InputError, Recipe, load_recipe, parse_setting
from verification import prebuilt_models, submitted_recipe

# Few digests, so that copies are frequent, within a class and across classes.
CLASSES = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 12).map(str), min_size=1, max_size=30),
    min_size=1,
    max_size=5,
)


def one_line(error):
    assert str(error)
    assert "\n" not in str(error)


# The first draw of any text reads tables of all letters: seconds on a busy machine.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CLASSES, st.integers(0, 2**31 - 1))
def test_every_image_is_on_one_side_and_its_copies_with_it(digests, seed):
    split = split_names(digests, seed)
    side_of = {}
    for label, names in digests.items():
        train, test = split["train"][label], split["test"][label]
        assert sorted(train + test) == sorted(names)
        for side, members in (("train", train), ("test", test)):
            for name in members:
                assert side_of.setdefault(names[name], side) == side


@given(st.dictionaries(st.text(max_size=8), st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_without_copies_the_cut_is_exact_and_the_order_given_does_not_matter(sizes, seed):
    digests = {label: {f"{i}": f"{label}/{i}" for i in range(n)} for label, n in sizes.items()}
    split = split_names(digests, seed)
    assert {label: len(names) for label, names in split["train"].items()} == {
        label: n * 70 // 100 for label, n in sizes.items()
    }
    turned = {label: dict(reversed(names.items())) for label, names in reversed(digests.items())}
    assert split_names(turned, seed) == split


NAMES = st.sampled_from([*Recipe().values(), "epoch", ""])
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
        assert type(recipe.values()[name]) is type(Recipe().values()[name])
        assert recipe.image_size % recipe.patch_size == 0
        assert recipe.values()[name] == recipe.values()[name]  # no NaN


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
@example("SETTINGS = f(dim=(lambda: 1)())")
@example("SETTINGS = SimpleNamespace(**{})")
@example("SETTINGS = f(epochs=1, epoch=2)")
def test_reading_a_submitted_program_runs_nothing_and_fails_in_one_line(text):
    try:
        prebuilt_models(text)
    except (SyntaxError, ValueError):
        return
    try:
        assert isinstance(submitted_recipe(text), Recipe)
    except InputError as error:
        one_line(error)
