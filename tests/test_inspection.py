"""Looking into a model, against a computation written out another way."""

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from lab import inspection, intake, scores
from lab.recipe import Recipe
from vit import ViT


def small_vit(pool="mean", **changes):
    torch.manual_seed(0)
    sizes = {"image_size": 12, "patch_size": 4, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 8}
    return ViT(num_classes=3, dim_head=5, pool=pool, **sizes | changes)


def embedded(model, images):
    """The tokens that enter the first block, (b, n + 1, d)."""
    x = model.to_patch_embedding(images)
    return torch.cat((model.cls_token.expand(len(x), -1, -1), x), 1) + model.pos_embedding


def weights_of(model, images):
    """The attention of all blocks, (depth, b, heads, n + 1, n + 1), computed beside the model."""
    x = embedded(model, images)
    blocks = []
    for attention, feed_forward in model.transformer.layers:
        q, k, _ = attention.fn.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        q, k = (rearrange(t, "b n (h d) -> b h n d", h=attention.fn.heads) for t in (q, k))
        blocks.append(torch.softmax(q @ k.transpose(-1, -2) / 5**0.5, -1))
        x = attention(x) + x
        x = feed_forward(x) + x
    return torch.stack(blocks).detach().double().numpy()


def read_by_the_head(model, images, rows):
    """Of rows (b, ..., 10, 10), (b, ..., 10): those of the tokens that the head reads."""
    if model.pool == "max":
        won = model.transformer(embedded(model, images)).argmax(dim=1)  # where a feature is largest, (b, d)
        return np.stack(
            [np.mean([row[..., token, :] for token in tokens], 0) for row, tokens in zip(rows, won)]
        )
    return rows.mean(axis=-2) if model.pool == "mean" else rows[..., 0, :]


@pytest.mark.parametrize("pool", ["mean", "cls", "max"])
def test_rollout_is_the_product_of_the_blocks_attention(pool):
    model, images = small_vit(pool), torch.randn(3, 1, 12, 12)
    before = model(images)
    rollout = inspection.attention_rollout(model, images)

    product = np.stack([np.eye(10)] * 3)
    for weights in weights_of(model, images):
        product = (weights.mean(axis=1) + np.eye(10)) / 2 @ product
    row = read_by_the_head(model, images, product)[:, 1:]
    assert rollout == pytest.approx(row / row.sum(1, keepdims=True), abs=1e-6)
    assert torch.equal(model(images), before)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_even_attention_rolls_out_to_even_weights():
    model = small_vit()
    for attention, _ in model.transformer.layers:
        torch.nn.init.zeros_(attention.fn.to_qkv.weight)
    assert inspection.attention_rollout(model, torch.randn(1, 1, 12, 12)) == pytest.approx(1 / 9)


class Fixed(torch.nn.Module):
    """In the place of a softmax: the same weights (heads, n + 1, n + 1) for all images."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, scores):
        return self.weights.expand_as(scores)


def with_attention(*heads, **changes):
    """A ViT whose heads attend by these matrices (n, n): half to patches, half to the class token."""
    model = small_vit(heads=len(heads), **changes)
    patches = torch.stack([torch.as_tensor(head, dtype=torch.float32) for head in heads])
    weights = torch.nn.functional.pad(patches / 2, (1, 0, 1, 0), value=0.5)
    for attention, _ in model.transformer.layers:
        attention.fn.attend = Fixed(weights)
    return model


def distance(model, images, grid=3):
    return inspection.attention_distance(model, images, inspection.patch_distances(grid, grid, 4))


def test_attention_distances_worked_out_by_hand():
    itself = np.eye(9)
    # On to the next column: 4 pixels, 4 pixels, and from the last column 8 pixels back to the first.
    next_column = np.kron(np.eye(3), np.roll(np.eye(3), 1, axis=1))
    corner = np.zeros((9, 9))
    corner[:, 0] = 1
    # To the top left from the nine patches, in patches.
    to_corner = 4 * (0 + 1 + 2 + 1 + 2**0.5 + 5**0.5 + 2 + 5**0.5 + 8**0.5) / 9
    class_token = np.zeros((9, 9))  # sees only that
    model = with_attention(itself, next_column, corner, class_token)
    measured = distance(model, torch.randn(2, 1, 12, 12))
    assert measured == pytest.approx(np.array([[0, 16 / 3, to_corner, 0]] * 2), abs=1e-6)


def test_even_attention_has_the_mean_distance_of_all_pairs_of_patches():
    model, images = small_vit(image_size=8), torch.randn(1, 1, 8, 8)
    for attention, _ in model.transformer.layers:
        torch.nn.init.zeros_(attention.fn.to_qkv.weight)
    by_hand = (0 + 4 + 4 + 4 * 2**0.5) / 4
    assert distance(model, images, grid=2) == pytest.approx(np.full((2, 2), by_hand))
    assert float(inspection.patch_distances(2, 2, 4).mean()) == pytest.approx(by_hand)


def test_attention_distance_is_averaged_over_patches_and_images():
    from scipy.spatial.distance import cdist

    model, images = small_vit(heads=3), 4 * torch.randn(5, 1, 12, 12)
    places = np.array([(4 * i, 4 * j) for i in range(3) for j in range(3)])
    far, weights = cdist(places, places), weights_of(model, images)[..., 1:, 1:]
    expected = np.zeros((2, 3))
    for block, image, head, query in np.ndindex(2, 5, 3, 9):
        expected[block, head] += np.average(far[query], weights=weights[block, image, head, query]) / (5 * 9)
    assert np.ptp(expected) > 1e-3
    assert distance(model, images) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls", "max"])
def test_attention_maps_are_what_the_output_reads(pool):
    model, image = small_vit(pool, heads=3), torch.randn(1, 12, 12)
    maps, blocks, heads = inspection.attention_maps(model, image)
    weights = weights_of(model, image[None])[:, 0]
    rows = read_by_the_head(model, image[None], weights[None])[0][..., 1:]
    assert maps == pytest.approx(rows / rows.sum(axis=-1, keepdims=True), abs=1e-6)
    assert (list(blocks), list(heads)) == ([0, 1], [0, 1, 2])


def test_of_many_blocks_and_heads_some_are_drawn_evenly_chosen():
    maps, blocks, heads = inspection.attention_maps(small_vit(depth=12, heads=9), torch.randn(1, 12, 12))
    assert maps.shape == (8, 8, 9)
    assert list(blocks) == [0, 2, 3, 5, 6, 8, 9, 11]
    assert list(heads) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_positions_are_compared_by_cosine():
    model = small_vit(image_size=48)  # 12 x 12 patches: 8 x 8 of them are shown
    similarity, rows, columns = inspection.position_similarity(model, 12, 12)
    assert similarity.shape == (8, 8, 12, 12)
    assert rows[0] == columns[0] == 0
    assert rows[-1] == columns[-1] == 11
    a, b = (model.pos_embedding[0, 1 + 12 * i + j] for i, j in ((rows[2], columns[3]), (5, 7)))
    expected = float((a @ b / a.norm() / b.norm()).detach())
    assert similarity[2, 3, 5, 7] == pytest.approx(expected, abs=1e-6)
    for i in range(8):
        for j in range(8):
            assert similarity[i, j, rows[i], columns[j]] == pytest.approx(1)


def test_filters_are_the_principal_components():
    from sklearn.decomposition import PCA

    model = small_vit(dim=40)
    filters, shares = inspection.patch_filters(model, 4, 1)
    pca = PCA().fit(model.to_patch_embedding[1].weight.detach().double().numpy())
    assert filters.shape == (16, 4, 4, 1)
    assert shares == pytest.approx(pca.explained_variance_ratio_[:16])
    for ours, theirs in zip(filters.reshape(16, 16), pca.components_):
        assert abs(ours @ theirs) == pytest.approx(1)
        assert ours[np.abs(ours).argmax()] > 0


def test_a_two_patch_colour_model_can_be_inspected():
    recipe = Recipe(image_size=8, patch_size=8, channels=3, dim=8, depth=1, heads=1)
    model = small_vit(image_size=8, patch_size=8, channels=3, depth=1)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    inputs = pixels.float() / 255
    arrays = inspection.inspect(model, pixels, inputs, inputs, recipe)
    assert arrays["pictures"].shape == (2, 8, 8, 3)
    assert (arrays["pictures"][1] == pixels[1].permute(1, 2, 0).numpy()).all()
    assert arrays["rollout"].shape == (2, 1, 1)
    assert arrays["filters"].shape == (8, 8, 8, 3)
    assert arrays["maps"] == pytest.approx(np.ones((1, 2, 1, 1)))
    assert arrays["distance"].tolist() == [[0, 0]]
    assert arrays["even_distance"] == 0


def test_pictures_of_more_than_8_bits_are_shown_in_the_scale_that_the_model_sees(tmp_path):
    for i in range(18):  # 12 bits in 16, as cameras write them
        values = np.full((12, 12), 500 + 100 * i, np.uint16)
        values[:, 6:] = 4000
        path = tmp_path / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    recipe, run = Recipe(image_size=12, patch_size=4), tmp_path / "run"
    run.mkdir()
    source = intake.Source(tmp_path / "images", "folder", "images")
    loaded = intake.read_images(source, recipe, run / "dataset_split")
    test = loaded.test
    logits = np.eye(3, dtype=np.float32)[test.labels]
    predictions = scores.score(logits, test.labels.numpy(), test.classes, test.files).predictions
    shown = inspection.look_into(small_vit(), loaded, predictions, recipe, run)
    for entry in shown.examples:
        with Image.open(run / entry.picture) as picture:
            assert np.asarray(picture).max() > 240


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_went_away_during_the_training_is_shown_as_the_model_saw_it(tmp_path, images, channels):
    recipe = Recipe(image_size=12, patch_size=4, channels=channels)
    run = tmp_path / "run"
    run.mkdir()
    loaded = intake.read_images(intake.Source(images, "folder", "images"), recipe, run / "dataset_split")
    test = loaded.test
    logits = np.eye(3, dtype=np.float32)[test.labels]
    predictions = scores.score(logits, test.labels.numpy(), test.classes, test.files).predictions
    (run / "dataset_split" / "test" / test.files[0]).unlink()

    shown = inspection.look_into(small_vit(channels=channels), loaded, predictions, recipe, run)

    assert len(test) == 9 and len(shown.examples) == 9
    assert (shown.attention.images, len(shown.attention.blocks)) == (9, 2)
    entry = next(e for e in shown.examples if e.file == test.files[0])
    with Image.open(run / entry.picture) as picture:
        pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - test[0][0].numpy()).mean() < 12  # JPEG
