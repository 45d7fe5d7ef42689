import dataclasses

import pytest

from lab.errors import InputError
from lab.recipe import Recipe, load_recipe, named_recipes, parse_setting


def test_every_named_recipe_loads_and_the_default_one_is_the_dataclass_but_for_the_start():
    assert {"default", "example", "assignment"} <= set(named_recipes())
    for name in named_recipes():
        assert load_recipe(name).mimetic == (name == "default")  # the others were recorded without
    assert load_recipe("default") == Recipe(mimetic=True)


def test_assignment_recipe_holds_the_templates_model():
    r = load_recipe("assignment")
    assert (r.image_size, r.patch_size, r.dim, r.depth, r.heads, r.mlp_dim) == (28, 4, 64, 6, 4, 128)
    assert (r.dim_head, r.pool, r.channels, r.learning_rate) == (64, "cls", 1, 0.003)


def test_settings_are_read_as_their_type():
    assert parse_setting("epochs=10") == ("epochs", 10)
    assert parse_setting("learning_rate = 3e-4") == ("learning_rate", 3e-4)
    assert parse_setting("pool=cls") == ("pool", "cls")
    assert parse_setting('pool="mean"') == ("pool", "mean")
    assert parse_setting("flip=false") == ("flip", False)


def test_settings_win_over_the_recipe_and_whole_numbers_do_for_floats(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfepochs = 3\r\nclip_norm = 2\r\n")  # as Windows editors save it
    recipe = load_recipe(str(path), [("epochs", 7)])
    assert recipe.epochs == 7
    assert recipe.clip_norm == 2.0
    assert type(recipe.clip_norm) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('epochs="ten"', "epochs must be a whole number, not 'ten'"),
        ("epochs=2.5", "epochs must be a whole number, not 2.5"),
        ("epochs=true", "epochs must be a whole number, not True"),
        ("flip=1", "flip must be true or false, not 1"),
        ("depth=0", "depth must be from 1 to 256, not 0"),
        ("learning_rate=nan", "learning_rate must be from"),
        ("pool=sum", "pool must be cls or mean or max, not 'sum'"),
        ("channels=2", "channels must be 1 or 3, not 2"),
        ("patch_size=7", "image_size = 200 does not divide into patches of patch_size = 7"),
        ("epochs", "write it as name=value"),
        ("epoch=3", "'epoch'; did you mean epochs?"),
        ("colour=3", "there is no hyperparameter 'colour'"),
        ("epochs=[", r"cannot read '\['"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        load_recipe("default", [parse_setting(text)])


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"epoch = 3"])
def test_broken_recipe_files_are_named(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.toml.* (is not valid TOML|did you mean epochs)"):
        load_recipe(path)


def test_missing_recipes_are_named_with_the_ones_there_are():
    with pytest.raises(InputError, match="'fast'; there are assignment, best, default, example"):
        load_recipe("fast")
    with pytest.raises(InputError, match=r"cannot read fast\.toml"):
        load_recipe("fast.toml")


def test_a_recipe_can_be_hashed_and_made_again_from_its_values(tmp_path):
    recipe = load_recipe("example")
    assert Recipe(**recipe.as_dict()) == recipe
    (tmp_path / "same.toml").write_text(recipe.as_toml())
    assert load_recipe(tmp_path / "same.toml") == recipe
    assert hash(Recipe(**recipe.as_dict())) == hash(recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1
