"""Looking into a model, against a computation written out another way."""

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

import data
import inspection
import record as rec
from recipe import Recipe
from vit import ViT


def small_vit(pool="mean", **changes):
    torch.manual_seed(0)
    sizes = {"image_size": 12, "patch_size": 4, "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 8}
    return ViT(num_classes=3, dim_head=5, pool=pool, **sizes | changes)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_rollout_is_the_product_of_the_blocks_attention(pool):
    model, images = small_vit(pool), torch.randn(3, 1, 12, 12)
    before = model(images)
    rollout = inspection.attention_rollout(model, images)

    x = model.to_patch_embedding(images)
    x = torch.cat((model.cls_token.expand(3, -1, -1), x), 1) + model.pos_embedding
    product = np.stack([np.eye(10)] * 3)
    for attention, feed_forward in model.transformer.layers:
        q, k, _ = attention.fn.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        q, k = (rearrange(t, "b n (h d) -> b h n d", h=2) for t in (q, k))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 5**0.5, -1).mean(1).detach().numpy()
        product = (weights + np.eye(10)) / 2 @ product
        x = attention(x) + x
        x = feed_forward(x) + x
    row = (product.mean(1) if pool == "mean" else product[:, 0])[:, 1:]
    assert rollout == pytest.approx(row / row.sum(1, keepdims=True), abs=1e-6)
    assert torch.equal(model(images), before)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_even_attention_rolls_out_to_even_weights():
    model = small_vit()
    for attention, _ in model.transformer.layers:
        torch.nn.init.zeros_(attention.fn.to_qkv.weight)
    assert inspection.attention_rollout(model, torch.randn(1, 1, 12, 12)) == pytest.approx(1 / 9)


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
    arrays = inspection.inspect(model, pixels, pixels.float() / 255, recipe)
    assert arrays["pictures"].shape == (2, 8, 8, 3)
    assert (arrays["pictures"][1] == pixels[1].permute(1, 2, 0).numpy()).all()
    assert arrays["rollout"].shape == (2, 1, 1)
    assert arrays["filters"].shape == (8, 8, 8, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_went_away_during_the_training_is_shown_as_the_model_saw_it(tmp_path, images, channels):
    recipe = Recipe(image_size=12, patch_size=4, channels=channels)
    run = tmp_path / "run"
    run.mkdir()
    loaded = data.load_data(images, run / "dataset_split", recipe)
    total = len(loaded.test.files)
    logits = np.eye(3, dtype=np.float32)[loaded.test.labels]
    results = rec.score(logits, loaded.test.labels.numpy(), loaded.classes, loaded.test.files)
    gone = run / "dataset_split" / "test" / loaded.test.files[0]
    gone.unlink()

    shown = inspection.look_into(small_vit(channels=channels), loaded, results["predictions"], recipe, run)

    assert total == 9 and len(shown["examples"]) == 9
    entry = next(e for e in shown["examples"] if e["file"] == loaded.test.files[0])
    with Image.open(run / entry["picture"]) as picture:
        pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - loaded.test.images[0].numpy()).mean() < 12  # JPEG
