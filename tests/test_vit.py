"""The model against independent ones: torchvision's ViT, and the public package of the same layout."""

import ast
import re
from functools import partial

import pytest
import torch
import torchinfo
from conftest import ROOT
from einops import rearrange
from torch import nn
from torchvision.models import VisionTransformer
from vit_pytorch import ViT as PublicViT

from vit import Dropout, ViT

TEMPLATE = dict(image_size=28, patch_size=4, num_classes=6, channels=1, dim=64, depth=6, heads=4, mlp_dim=128)


def torchvision_twin(model, *, image_size, patch_size, dim, depth, heads, mlp_dim, channels):
    """torchvision's VisionTransformer with the weights of `model` (heads * dim_head == dim)."""
    twin = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=dim,
        mlp_dim=mlp_dim,
        num_classes=6,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    twin.conv_proj = nn.Conv2d(channels, dim, patch_size, patch_size)
    theirs = {
        "class_token": model.cls_token,
        "encoder.pos_embedding": model.pos_embedding,
        "conv_proj.weight": rearrange(
            model.to_patch_embedding[1].weight,
            "d (p1 p2 c) -> d c p1 p2",
            p1=patch_size,
            p2=patch_size,
        ),
        "conv_proj.bias": model.to_patch_embedding[1].bias,
        "encoder.ln.weight": model.mlp_head[0].weight,
        "encoder.ln.bias": model.mlp_head[0].bias,
        "heads.head.weight": model.mlp_head[1].weight,
        "heads.head.bias": model.mlp_head[1].bias,
    }
    for i, (attention, mlp) in enumerate(model.transformer.layers):
        theirs |= {
            f"encoder.layers.encoder_layer_{i}.{name}": value
            for name, value in {
                "ln_1.weight": attention.norm.weight,
                "ln_1.bias": attention.norm.bias,
                "self_attention.in_proj_weight": attention.fn.to_qkv.weight,
                "self_attention.in_proj_bias": torch.zeros(3 * dim),
                "self_attention.out_proj.weight": attention.fn.to_out[0].weight,
                "self_attention.out_proj.bias": attention.fn.to_out[0].bias,
                "ln_2.weight": mlp.norm.weight,
                "ln_2.bias": mlp.norm.bias,
                "mlp.0.weight": mlp.fn.net[0].weight,
                "mlp.0.bias": mlp.fn.net[0].bias,
                "mlp.3.weight": mlp.fn.net[3].weight,
                "mlp.3.bias": mlp.fn.net[3].bias,
            }.items()
        }
    twin.load_state_dict({k: v.detach().clone() for k, v in theirs.items()}, strict=True)
    return twin


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_and_gradients_equal_torchvisions(channels):
    torch.manual_seed(0)
    sizes = dict(image_size=24, patch_size=4, dim=32, depth=3, heads=4, mlp_dim=48, channels=channels)
    model = ViT(num_classes=6, dim_head=8, **sizes)
    nn.init.normal_(model.transformer.layers[0][0].norm.weight)  # a norm that is not the identity
    twin = torchvision_twin(model, **sizes)
    images, labels = torch.randn(5, channels, 24, 24), torch.tensor([0, 5, 2, 2, 1])

    ours, theirs = model(images), twin(images)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    nn.functional.cross_entropy(ours, labels).backward()
    nn.functional.cross_entropy(theirs, labels).backward()
    pairs = [
        (model.cls_token, twin.class_token),
        (model.pos_embedding, twin.encoder.pos_embedding),
        (model.to_patch_embedding[1].bias, twin.conv_proj.bias),
        (model.mlp_head[1].weight, twin.heads.head.weight),
    ]
    for (attention, mlp), layer in zip(model.transformer.layers, twin.encoder.layers):
        pairs += [
            (attention.fn.to_qkv.weight, layer.self_attention.in_proj_weight),
            (attention.fn.to_out[0].weight, layer.self_attention.out_proj.weight),
            (attention.norm.weight, layer.ln_1.weight),
            (mlp.fn.net[0].weight, layer.mlp[0].weight),
            (mlp.fn.net[3].bias, layer.mlp[3].bias),
        ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_weights_of_the_public_implementation_load_strictly_and_agree(pool):
    torch.manual_seed(0)
    public = PublicViT(**TEMPLATE, pool=pool)
    model = ViT(**TEMPLATE, pool=pool)
    model.load_state_dict(public.state_dict(), strict=True)
    images = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(model(images), public(images), atol=1e-5, rtol=1e-5)


def test_template_model_prints_the_assignments_table():
    rows = [
        "ViT 3,264",
        "Sequential: 1-1 --",
        "Rearrange: 2-1 --",
        "Linear: 2-2 1,088",
        "Dropout: 1-2 --",
        "Transformer: 1-3 --",
        "ModuleList: 2-3",  # the assignment leaves this cell empty, torchinfo now prints the sum
        "Identity: 1-4 --",
        "Sequential: 1-5 --",
        "LayerNorm: 2-4 128",
        "Linear: 2-5 390",
        "Total params: 499,462",
        "Trainable params: 499,462",
        "Non-trainable params: 0",
    ]
    printed = str(torchinfo.summary(ViT(**TEMPLATE), depth=2, verbose=0))
    lines = [re.sub(r"[^\w:,\- ]", "", line) for line in printed.splitlines()]
    lines = [" ".join(line.split()) for line in lines if line.strip(" =")][1:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows):
        assert line.startswith(row)


def test_submodules_carry_the_names_of_the_example_report():
    names = {name for name, _ in ViT(**TEMPLATE, dropout=0.1).named_modules()}
    assert names >= {
        "to_patch_embedding",
        "dropout",
        "transformer.layers.5.0.norm",
        "transformer.layers.5.0.fn.attend",
        "transformer.layers.5.0.fn.to_qkv",
        "transformer.layers.5.0.fn.to_out",
        "transformer.layers.5.1.fn.net",
        "to_latent",
        "mlp_head",
    }


def test_class_token_pooling_is_blind_to_the_order_of_patches_without_positions():
    torch.manual_seed(0)
    model = ViT(**TEMPLATE)
    images = torch.randn(2, 1, 28, 28)
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., 8:12, 20:24] = (
        images[..., 8:12, 20:24],
        images[..., :4, :4],
    )
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    nn.init.zeros_(model.pos_embedding)
    torch.testing.assert_close(model(images), model(swapped), atol=1e-5, rtol=1e-5)


def test_rectangles_are_allowed():
    model = ViT(**TEMPLATE | {"image_size": (16, 24), "patch_size": (4, 8)})
    assert model.pos_embedding.shape[1] == 4 * 3 + 1
    assert model(torch.zeros(2, 1, 16, 24)).shape == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "30x30 pixels does not divide into patches of 4x4"),
        ({"pool": "max"}, "'cls' or 'mean', not 'max'"),
    ],
)
def test_impossible_models_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ViT(**TEMPLATE | change)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 28, 32), (1, 28, 28), (2, 1, 56, 14)])
def test_batches_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(batch, 1, 28, 28\), got"):
        ViT(**TEMPLATE)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_leaves_out_a_share_at_random_and_scales_the_rest(dtype):
    torch.manual_seed(0)
    x = torch.randn(37, 1001, dtype=dtype).requires_grad_()
    dropped = Dropout(0.1)(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (x / 0.9)[kept], rtol=0.01, atol=0)

    def within_four_deviations(share, expected):
        return abs(share - expected) < 4 * (expected * (1 - expected) / x.numel()) ** 0.5

    left_out = ~kept.flatten()
    assert within_four_deviations(left_out.float().mean(), 0.1)
    for step in (1, 2, 3, 4):  # neighbours are independent, those out of one random number too
        assert within_four_deviations((left_out[step:] & left_out[:-step]).float().mean(), 0.1**2)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient != 0, kept)


def test_dropout_does_nothing_when_evaluating_or_at_zero():
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_no_prebuilt_transformer_is_used():
    tree = ast.parse((ROOT / "vit.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {getattr(n, "module", None) or n.names[0].name for n in imports}
    assert modules == {"math", "torch", "einops", "einops.layers.torch"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    prebuilt = ("Transformer", "MultiheadAttention", "scaled_dot_product_attention")
    assert not [name for name in attributes if name.startswith(prebuilt)]
