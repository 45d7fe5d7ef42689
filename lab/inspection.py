"""Looking into a trained ViT: where it attends, and what its embeddings have learned.

Nothing here changes what vit.py computes: the attention weights are read by hooks while it runs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
from lab import record as rec
from lab import scores
from lab.intake import decode_in, save_thumbnail
from vit import Attention

MAX_POSITIONS = 8  # at most so many positions a side have their similarity map drawn
MAX_FILTERS = 28  # as in the paper's figure 7, left
MAX_SIDE = 160  # pixels of the pictures kept beside the rollouts
MAX_BLOCKS = MAX_HEADS = 8  # at most so many have their attention map drawn
MEASURED = 48  # at most so many images are measured for the attention distance


def _evenly(count, most):
    """At most `most` of the numbers 0 to count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


@torch.no_grad()
def _attention(model, images, keep):
    """([keep(weights) of each block], tokens): weights are (b, heads, n + 1, n + 1) for images (b, c, h, w),
    and tokens (b, n + 1, d) what the last block gives."""
    kept, tokens = [], []
    blocks = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [
        b.attend.register_forward_hook(lambda _, __, weights: kept.append(keep(weights))) for b in blocks
    ]
    hooks.append(model.transformer.register_forward_hook(lambda _, __, output: tokens.append(output)))
    training = model.training
    model.eval()
    try:
        model(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return kept, tokens[0]


def _shares(tokens, pool):
    """How much of what the head reads is of each token: (b, n + 1, d) -> (b, n + 1), float64, sums of one.
    Of the maximum the share of the features in which a token has the largest value."""
    n = tokens.shape[1]
    if pool == "max":
        return F.one_hot(tokens.argmax(dim=1).cpu(), n).double().mean(dim=1)
    row = torch.full((n,), 1 / n) if pool == "mean" else F.one_hot(torch.tensor(0), n)
    return row.double().expand(len(tokens), n)


def _to_patches(weights):
    """Rows without the class token's column, summing to one again: (..., n + 1) -> (..., n)."""
    patches = weights[..., 1:]
    # A row may give the class token all its weight; then it has none for any patch.
    return patches / patches.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(patches.dtype).tiny)


def attention_rollout(model, images):
    """How much each patch counts for the output, through all blocks: images (b, c, h, w) -> (b, n) numpy.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: the weights of a block
    averaged over its heads, half of them replaced by the identity for the residual connection, and the
    blocks multiplied. The rows are read as the head reads the tokens: the class token's, the mean of all, or
    for the maximum the mean weighted by `_shares`. The class token's own column is left out and each row of n
    patches sums to one.
    """
    blocks, tokens = _attention(model, images, lambda weights: weights.cpu().double().mean(dim=1))  # of heads
    identity = torch.eye(blocks[0].shape[-1], dtype=torch.float64)
    rollout = identity
    for block in blocks:
        rollout = (0.5 * block + 0.5 * identity) @ rollout
    return _to_patches((_shares(tokens, model.pool)[:, None] @ rollout).squeeze(1)).numpy()


def patch_distances(rows, columns, patch_size):
    """Distances in pixels between the centres of all patches of a grid, row by row: (n, n), float32."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) * float(patch_size)
    return (places[:, None] - places).norm(dim=-1)


def attention_distance(model, images, distances):
    """How far each head looks, in pixels: images (b, c, h, w), distances (n, n) -> (depth, heads) numpy.

    The attention distance of Dosovitskiy et al. 2021, figure 7, right, and appendix D.7: "averaging the
    distance between the query pixel and all other pixels, weighted by the attention weight", then the
    mean over the images. Here the distance is that of the patches' centres, a patch is at distance 0
    from itself, and all patches are queries. The paper does not say what becomes of the class token:
    here it is neither query nor key, and each row of weights is divided by its sum over the patches.
    """

    def keep(weights):
        weights = _to_patches(weights[..., 1:, :].float())
        return (weights * distances.to(weights.device)).sum(dim=-1).mean(dim=-1).sum(dim=0).cpu().double()

    # One by one: a GPU may be too small for more.
    parts = [torch.stack(_attention(model, image, keep)[0]) for image in images.split(1)]
    return (sum(parts) / len(images)).numpy()


def attention_maps(model, image):
    """What the model's output reads from each patch, by block and head: image (c, h, w) -> (k, m, n) numpy.

    A map has the rows of weights as the head reads the tokens, as in `attention_rollout`; the class token's
    own column is left out and a map sums to one. At most MAX_BLOCKS blocks and MAX_HEADS heads, evenly
    chosen; also returns the two lists of their numbers, from 0.
    """
    _, tokens = _attention(model, image[None], lambda weights: None)
    shares = _shares(tokens, model.pool)[0]
    # Once more, as to keep all the weights of a large model takes gigabytes.
    rows, _ = _attention(model, image[None], lambda weights: (shares.to(weights) @ weights[0]).cpu().double())
    maps = _to_patches(torch.stack(rows)).numpy()
    blocks, heads = _evenly(len(maps), MAX_BLOCKS), _evenly(maps.shape[1], MAX_HEADS)
    return maps[blocks][:, heads], blocks, heads


@torch.no_grad()
def position_similarity(model, rows, columns):
    """Cosine similarity of position embeddings: (r, c, rows, columns), the paper's figure 7, centre.

    `rows` and `columns` are the grid of patches. For at most MAX_POSITIONS x MAX_POSITIONS positions,
    evenly spaced over the grid, the similarity to all others. Also returns the two lists of positions.
    """
    vectors = torch.nn.functional.normalize(model.pos_embedding[0, 1:].cpu().double(), dim=1)
    similarity = (vectors @ vectors.T).numpy().reshape(rows, columns, rows, columns)
    chosen = [_evenly(n, MAX_POSITIONS) for n in (rows, columns)]
    return similarity[chosen[0]][:, chosen[1]], *chosen


@torch.no_grad()
def patch_filters(model, patch_size, channels):
    """The first principal components of the patch embedding's filters: the paper's figure 7, left.

    Returns (m, patch_size, patch_size, channels), strongest first, and the share of the variance that
    each explains, (m). A component's sign is arbitrary: its largest weight is made positive.
    """
    filters = model.to_patch_embedding[1].weight.cpu().double().numpy()  # (dim, p p c)
    _, strength, components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    count = min(MAX_FILTERS, *filters.shape)
    shares = strength**2 / max((strength**2).sum(), 1e-30)  # weights may be zero
    components = components[:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return (components * np.sign(largest)).reshape(count, patch_size, patch_size, channels), shares[:count]


def _small(image):
    """uint8 (c, h, w) -> (h, w, c), at most MAX_SIDE pixels a side."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.atleast_3d(np.asarray(picture))


def inspect(model, pixels, inputs, measured, recipe):
    """All arrays for the report by name: what goes to run/inspection.npz.

    `pixels` (k, c, side, side) uint8 are the pictures to roll out; `inputs` are the same as the model
    takes them, and so are the images `measured` (m, c, side, side) for the attention distance. The first
    of the k is the one whose attention maps are kept.
    """
    grid = recipe.image_size // recipe.patch_size
    distances = patch_distances(grid, grid, recipe.patch_size)
    maps, blocks, heads = attention_maps(model, inputs[0])
    similarity, rows, columns = position_similarity(model, grid, grid)
    filters, shares = patch_filters(model, recipe.patch_size, recipe.channels)
    # One by one: the attention weights of all blocks are kept.
    rollouts = np.concatenate([attention_rollout(model, image) for image in inputs.split(1)])
    return {
        "pictures": np.stack([_small(image) for image in pixels]),
        "rollout": rollouts.reshape(-1, grid, grid).astype(np.float32),
        "distance": attention_distance(model, measured, distances),
        "even_distance": distances.double().mean().numpy(),  # of attention that is the same everywhere
        "maps": maps.reshape(*maps.shape[:2], grid, grid).astype(np.float32),
        "map_blocks": blocks,
        "map_heads": heads,
        "similarity": similarity.astype(np.float32),
        "rows": rows,
        "columns": columns,
        "filters": filters.astype(np.float32),
        "filter_shares": shares.astype(np.float32),
    }


def _save_pictures(images, kinds, recipe, run):
    """Save the pictures of {kind: samples or predictions} to the run folder, and note their names in them."""
    side = scores.picture_side(sum(map(len, kinds.values())))
    decode = decode_in(images.facts.pixel_range)
    for kind, entries in kinds.items():
        (run / kind).mkdir(exist_ok=True)
        name = "train" if kind == "train_samples" else "test"
        part, folder = getattr(images, name), run / "dataset_split" / name
        for number, entry in enumerate(entries, 1):
            entry.picture = f"{kind}/{number:03}.jpg"
            try:
                save_thumbnail(folder / entry.file, run / entry.picture, recipe.channels, side, decode)
            except OSError:  # a link, and its image went away during the training: as the model saw it
                pixels = _small(part[part.files.index(entry.file)][0])
                Image.fromarray(pixels.squeeze()).save(run / entry.picture, quality=90)


def look_into(model, images, predictions, recipe, run):
    """The record's Shown: pictures and arrays that the report shows, written to the run folder."""
    classes, test = images.facts.classes, images.test
    kinds = {
        "examples": scores.choose_examples(predictions, classes),
        "mistakes": scores.choose_mistakes(predictions),
        "train_samples": scores.choose_samples(images.train.files),
        "test_samples": scores.choose_samples(test.files),
    }
    _save_pictures(images, kinds, recipe, run)
    rollouts = scores.choose_rollouts(predictions, classes)
    device = next(model.parameters()).device

    def as_input(chosen):
        pixels = torch.stack([test[i][0] for i in chosen])
        return pixels, data.normalize(pixels.to(device).float() / 255, recipe.standardize)

    # The files are sorted by class, so these are of all classes, and no prediction chooses them.
    measured = _evenly(len(test), MEASURED)
    pixels, inputs = as_input([test.files.index(entry.file) for entry in rollouts])
    arrays = inspect(model, pixels, inputs, as_input(measured)[1], recipe)
    np.savez(run / "inspection.npz", **arrays)
    blocks = [(row.mean(), row.min(), row.max()) for row in arrays["distance"]]  # over a block's heads
    blocks = [rec.BlockDistance(*(round(float(value), 3) for value in block)) for block in blocks]
    attention = rec.Attention(len(measured), round(float(arrays["even_distance"]), 3), blocks)
    return rec.Shown(**kinds, rollouts=rollouts, attention=attention, arrays="inspection.npz")
