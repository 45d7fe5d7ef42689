"""The model against independent ones: torchvision's ViT, and the public package of the same layout."""

import ast
import math
import re
from functools import partial

import pytest
import torch
import torchinfo
from conftest import ROOT
from einops import EinopsError, rearrange
from torch import nn
from torchvision.models import VisionTransformer
from vit_pytorch import ViT as PublicViT

from vit import ViT, pair

TEMPLATE = dict(image_size=28, patch_size=4, num_classes=6, channels=1, dim=64, depth=6, heads=4, mlp_dim=128)


# The names of our weights in torchvision's model.
BLOCK, THEIR_BLOCK = r"transformer\.layers\.(\d+)", r"encoder.layers.encoder_layer_\1"
TORCHVISIONS = {
    r"cls_token": "class_token",
    r"pos_embedding": "encoder.pos_embedding",
    r"to_patch_embedding\.1": "conv_proj",
    r"mlp_head\.0": "encoder.ln",
    r"mlp_head\.1": "heads.head",
    rf"{BLOCK}\.0\.norm": rf"{THEIR_BLOCK}.ln_1",
    rf"{BLOCK}\.0\.fn\.to_qkv\.weight": rf"{THEIR_BLOCK}.self_attention.in_proj_weight",
    rf"{BLOCK}\.0\.fn\.to_out\.0": rf"{THEIR_BLOCK}.self_attention.out_proj",
    rf"{BLOCK}\.1\.norm": rf"{THEIR_BLOCK}.ln_2",
    rf"{BLOCK}\.1\.fn\.net": rf"{THEIR_BLOCK}.mlp",
}


def as_torchvision(name, value):
    """(name, value) of one of our weights, or its gradient, in torchvision's model."""
    for ours, theirs in TORCHVISIONS.items():
        name = re.sub(f"^{ours}", theirs, name)
    if name == "conv_proj.weight":
        value = rearrange(value, "d (p1 p2 c) -> d c p1 p2", p1=4, p2=4)
    return name, value.detach()


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_and_gradients_equal_torchvisions(channels):
    torch.manual_seed(0)
    sizes = dict(image_size=24, patch_size=4, mlp_dim=48, num_classes=6)
    model = ViT(channels=channels, dim=32, depth=3, heads=4, dim_head=8, **sizes)
    nn.init.normal_(model.transformer.layers[0][0].norm.weight)  # a norm that is not the identity
    norm = partial(nn.LayerNorm, eps=1e-5)
    twin = VisionTransformer(hidden_dim=32, num_layers=3, num_heads=4, norm_layer=norm, **sizes)
    twin.conv_proj = nn.Conv2d(channels, 32, 4, 4)
    biases = {name: value * 0 for name, value in twin.state_dict().items() if "in_proj_bias" in name}
    theirs = dict(as_torchvision(*item) for item in model.state_dict().items())
    twin.load_state_dict(theirs | biases, strict=True)
    images, labels = torch.randn(5, channels, 24, 24), torch.tensor([0, 5, 2, 2, 1])

    for each in (model, twin):
        nn.functional.cross_entropy(each(images), labels).backward()

    torch.testing.assert_close(model(images), twin(images), atol=1e-5, rtol=1e-5)
    gradients = {name: p.grad for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        name, gradient = as_torchvision(name, p.grad)
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_weights_of_the_public_implementation_load_strictly_and_agree(pool):
    torch.manual_seed(0)
    public = PublicViT(**TEMPLATE, pool=pool)
    model = ViT(**TEMPLATE, pool=pool)
    model.load_state_dict(public.state_dict(), strict=True)
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(model(images), public(images), atol=1e-5, rtol=1e-5)


def test_the_head_may_read_the_largest_value_of_each_feature():
    """Of the tokens that the public implementation computes, which has no such head."""
    torch.manual_seed(0)
    public, model, kept = PublicViT(**TEMPLATE), ViT(**TEMPLATE, pool="max"), []
    model.load_state_dict(public.state_dict(), strict=True)
    public.transformer.register_forward_hook(lambda _, __, tokens: kept.append(tokens))
    images = torch.randn(3, 1, 28, 28)
    public(images)
    largest = torch.stack(kept[0].unbind(1)).max(dim=0).values
    torch.testing.assert_close(model(images), public.mlp_head(largest), atol=1e-5, rtol=1e-5)


def test_template_model_prints_the_assignments_table():
    rows = [
        "ViT 3,264", "Sequential: 1-1 --", "Rearrange: 2-1 --", "Linear: 2-2 1,088", "Dropout: 1-2 --",
        "Transformer: 1-3 --",
        "ModuleList: 2-3",  # the assignment leaves this cell empty, torchinfo now prints the sum
        "Identity: 1-4 --", "Sequential: 1-5 --", "LayerNorm: 2-4 128", "Linear: 2-5 390",
        "Total params: 499,462", "Trainable params: 499,462", "Non-trainable params: 0",
    ]  # fmt: skip
    printed = str(torchinfo.summary(ViT(**TEMPLATE), depth=2, verbose=0))
    lines = [re.sub(r"[^\w:,\- ]", "", line) for line in printed.splitlines()]
    lines = [" ".join(line.split()) for line in lines if line.strip(" =")][1:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows):
        assert line.startswith(row)


def test_submodules_carry_the_names_of_the_example_report():
    names = {name for name, _ in ViT(**TEMPLATE, dropout=0.1).named_modules()}
    assert names >= {"to_patch_embedding", "dropout", "to_latent", "mlp_head"}
    assert names >= {f"transformer.layers.5.0.fn.{name}" for name in ("attend", "to_qkv", "to_out")}
    assert names >= {f"transformer.layers.5.{name}" for name in ("0.norm", "1.fn.net")}


def test_class_token_pooling_is_blind_to_the_order_of_patches_without_positions():
    torch.manual_seed(0)
    model = ViT(**TEMPLATE)
    images = torch.randn(2, 1, 28, 28)
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., 8:12, 20:24] = (images[..., 8:12, 20:24], images[..., :4, :4])
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    nn.init.zeros_(model.pos_embedding)
    torch.testing.assert_close(model(images), model(swapped), atol=1e-5, rtol=1e-5)


def test_rectangles_are_allowed():
    model = ViT(**TEMPLATE | {"image_size": (16, 24), "patch_size": (4, 8)})
    assert model.pos_embedding.shape[1] == 4 * 3 + 1
    assert model(torch.zeros(2, 1, 16, 24)).shape == (2, 6)
    assert pair(3) == (3, 3) and pair((4, 8)) == (4, 8)


@torch.no_grad()
def test_a_mimetic_start_has_symmetric_attention_and_places_as_waves():
    sizes = TEMPLATE | {"image_size": (16, 24), "patch_size": (4, 8), "dim": 10, "dim_head": 6}
    torch.manual_seed(0)
    plain = ViT(**sizes)
    torch.manual_seed(0)
    model = ViT(**sizes, mimetic=True)
    x = torch.randn(5, 10)
    for (started, _), (drawn, _) in zip(model.transformer.layers, plain.transformer.layers):
        qkv, old = started.fn.to_qkv.weight, drawn.fn.to_qkv.weight
        assert torch.equal(qkv[:24], old[:24]) and torch.equal(qkv[48:], old[48:])  # queries and values
        for q, k in zip((x @ qkv[:24].T).split(6, -1), (x @ qkv[24:48].T).split(6, -1)):
            scores = q @ k.T  # of one head: symmetric, and with no negative eigenvalue
            torch.testing.assert_close(scores, scores.T)
            assert torch.linalg.eigvalsh(scores).min() > -1e-5
        kept = (started.fn.to_out[0].weight @ qkv[48:]).trace()  # of a token that attends to itself alone
        assert kept == pytest.approx(-float(qkv[48:].square().sum()), rel=1e-5)
    # 4 rows of 3 patches; tokens of width 10 have two frequencies, 1 and 1/100, and two numbers as drawn.
    for number, (row, column) in enumerate((r, c) for r in range(4) for c in range(3)):
        angles = [row, row / 100, row, row / 100, column, column / 100, column, column / 100]
        waves = [(math.cos if i % 4 > 1 else math.sin)(angle) for i, angle in enumerate(angles)]
        there = model.pos_embedding[0, 1 + number]
        assert there[:8].tolist() == pytest.approx(waves, abs=1e-6)
        assert torch.equal(there[8:], plain.pos_embedding[0, 1 + number, 8:])
    assert torch.equal(model.pos_embedding[0, 0], plain.pos_embedding[0, 0])  # the class token's
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, plain.get_parameter(n))}
    assert all("qkv" in name or "to_out.0.weight" in name for name in changed - {"pos_embedding"})


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="30x30 pixels does not divide into patches of 4x4"):
        ViT(**TEMPLATE | {"image_size": 30})
    with pytest.raises(ValueError, match="'cls', 'mean' or 'max', not 'sum'"):
        ViT(**TEMPLATE | {"pool": "sum"})


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 28, 32), (2, 1, 56, 28)])
def test_batches_of_another_shape_are_an_error(shape):
    with pytest.raises((RuntimeError, ValueError, EinopsError)):
        ViT(**TEMPLATE)(torch.zeros(shape))


def test_dropout_acts_in_training_alone_at_every_place():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 28, 28)
    model = ViT(**TEMPLATE, dropout=0.2, emb_dropout=0.3)
    places, used = [m for m in model.modules() if isinstance(m, nn.Dropout)], []
    # The embedding's; in each block the attention weights', its output's, and two in the MLP.
    assert [place.p for place in places] == [0.3] + 6 * 4 * [0.2]
    for place in places:
        place.register_forward_hook(lambda module, *_: used.append(module))
    assert not torch.equal(model(images), model(images))
    assert len(used) == 2 * 25 and set(used) == set(places)
    plain = ViT(**TEMPLATE)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), plain(images))


def test_no_prebuilt_transformer_is_used():
    tree = ast.parse((ROOT / "vit.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {getattr(n, "module", None) or n.names[0].name for n in imports}
    assert modules == {"torch", "einops", "einops.layers.torch"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    prebuilt = ("Transformer", "MultiheadAttention", "scaled_dot_product_attention")
    assert not [name for name in attributes if name.startswith(prebuilt)]
