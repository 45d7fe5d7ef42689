"""Looking into a trained ViT: where it attends, and what its embeddings have learned.

Nothing here changes what vit.py computes: the attention weights are read by hooks while it runs.
"""

import numpy as np
import torch
from PIL import Image

import data
import record as rec
from vit import Attention

MAX_POSITIONS = 8  # at most so many positions a side have their similarity map drawn
MAX_FILTERS = 28  # as in the paper's figure 7, left
MAX_SIDE = 160  # pixels of the pictures kept beside the rollouts


@torch.no_grad()
def attention_rollout(model, images):
    """How much each patch counts for the output, through all blocks: images (b, c, h, w) -> (b, n) numpy.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: the weights of a block
    averaged over its heads, half of them replaced by the identity for the residual connection, and the
    blocks multiplied. The row of the class token is read, or for mean pooling the mean of all rows. The
    class token's own column is left out and each row of n patches sums to one.
    """
    kept = []
    hooks = [
        module.attend.register_forward_hook(lambda _module, _input, weights: kept.append(weights))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    training = model.training
    model.eval()
    try:
        model(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    tokens = kept[0].shape[-1]
    identity = torch.eye(tokens, dtype=torch.float64)
    rollout = identity
    for weights in kept:
        block = weights.double().cpu().mean(dim=1)  # over the heads: (b, n + 1, n + 1)
        rollout = (0.5 * block + 0.5 * identity) @ rollout
    row = rollout.mean(dim=1) if model.pool == "mean" else rollout[:, 0]
    patches = row[:, 1:]
    return (patches / patches.sum(dim=1, keepdim=True)).numpy()


@torch.no_grad()
def position_similarity(model, rows, columns):
    """Cosine similarity of position embeddings: (r, c, rows, columns), the paper's figure 7, centre.

    `rows` and `columns` are the grid of patches. For at most MAX_POSITIONS x MAX_POSITIONS positions,
    evenly spaced over the grid, the similarity to all others. Also returns the two lists of positions.
    """
    vectors = torch.nn.functional.normalize(model.pos_embedding[0, 1:].double().cpu(), dim=1)
    similarity = (vectors @ vectors.T).numpy().reshape(rows, columns, rows, columns)
    chosen = [
        np.unique(np.linspace(0, n - 1, min(n, MAX_POSITIONS)).round().astype(int)) for n in (rows, columns)
    ]
    return similarity[chosen[0]][:, chosen[1]], *chosen


@torch.no_grad()
def patch_filters(model, patch_size, channels):
    """The first principal components of the patch embedding's filters: the paper's figure 7, left.

    Returns (m, patch_size, patch_size, channels), strongest first, and the share of the variance that
    each explains, (m). A component's sign is arbitrary: its largest weight is made positive.
    """
    filters = model.to_patch_embedding[1].weight.double().cpu().numpy()  # (dim, p p c)
    _, strength, components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    count = min(MAX_FILTERS, *filters.shape)
    shares = strength**2 / (strength**2).sum()
    components = components[:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)
    return components.reshape(count, patch_size, patch_size, channels), shares[:count]


def _small(image):
    """uint8 (c, h, w) -> (h, w, c), at most MAX_SIDE pixels a side."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.atleast_3d(np.asarray(picture))


def inspect(model, pixels, inputs, recipe):
    """All arrays for the report by name: what goes to run/inspection.npz.

    `pixels` (k, c, side, side) uint8 are the pictures to roll out; `inputs` are the same as the model
    takes them.
    """
    grid = recipe.image_size // recipe.patch_size
    similarity, rows, columns = position_similarity(model, grid, grid)
    filters, shares = patch_filters(model, recipe.patch_size, recipe.channels)
    # One by one: the attention weights of all blocks are kept.
    rollouts = np.concatenate([attention_rollout(model, image) for image in inputs.split(1)])
    return {
        "pictures": np.stack([_small(image) for image in pixels]),
        "rollout": rollouts.reshape(-1, grid, grid).astype(np.float32),
        "similarity": similarity.astype(np.float32),
        "rows": rows,
        "columns": columns,
        "filters": filters.astype(np.float32),
        "filter_shares": shares.astype(np.float32),
    }


def look_into(model, images, predictions, recipe, run):
    """Pictures and arrays that the report shows, written to the run folder: the record's part of them."""
    shown = {
        "examples": rec.choose_examples(predictions, images.classes),
        "mistakes": rec.choose_mistakes(predictions),
        "train_samples": rec.choose_samples(images.train.files),
        "test_samples": rec.choose_samples(images.test.files),
    }
    side = rec.picture_side(sum(map(len, shown.values())))
    for kind, entries in shown.items():
        (run / kind).mkdir()
        split = "train" if kind == "train_samples" else "test"
        for number, entry in enumerate(entries, 1):
            entry["picture"] = f"{kind}/{number:03}.jpg"
            file = run / "dataset_split" / split / entry["file"]
            try:
                data.save_thumbnail(file, run / entry["picture"], recipe.channels, side)
            except OSError:  # a link, and its image went away during the training: as the model saw it
                part = getattr(images, split)
                pixels = _small(part.images[part.files.index(entry["file"])])
                Image.fromarray(pixels.squeeze()).save(run / entry["picture"], quality=90)

    rollouts = rec.choose_rollouts(predictions, images.classes)
    index = torch.tensor([images.test.files.index(entry["file"]) for entry in rollouts])
    pixels = images.test.images[index]
    device = next(model.parameters()).device
    inputs = data.normalize(pixels.to(device).float() / 255, recipe.standardize)
    arrays = inspect(model, pixels, inputs, recipe)
    np.savez(run / "inspection.npz", **arrays)
    return shown | {"rollouts": rollouts, "arrays": "inspection.npz"}
