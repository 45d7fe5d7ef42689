"""Images that show one thing stay on one side of the split: copies, augmented versions, near copies, and what
`--group` says. A test image whose twin was trained on tests nothing."""

import re
import warnings
from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from lab.errors import InputError
from lab.record import KeptTogether

# Roboflow's exports: <name of the source>_jpg.rf.<hash>.jpg, several of each.
VERSION = re.compile(r"(.+)\.rf\.[0-9a-f]{6,}")
# 7_hflip.png, 7_rot90.png, 7_aug_3.png or 7_90deg.png, where there is a 7.png.
AUGMENTED = re.compile(
    r"(?i)(.+?)[-_ ](new)?(\d+ ?deg|aug|[hv]?flip|mirror|rot|trans|shift|crop|zoom|bright|dark|contrast|blur"
    r"|noise|noisy).*"
)
ALIKE = 0.995  # correlation of two thumbnails from which on they are one picture
THUMBNAIL = 32
NEAR = "near copies (their thumbnails correlate by 0.995 or more)"


def compile_group(text):
    """The regular expression of --group. InputError if it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"--group {text!r} is not a regular expression ({error})") from None


def near_copies(pixels, rows):
    """Arrays (m, 2) of pairs of `rows` of uint8 pixels (n, c, side, side) that show the same picture, however
    bright.

    The mean picture is taken off first: what all share, as a camera that never moves, says nothing. So are
    pictures without any contrast. Sketches of 64 numbers find the candidates, as random projections keep
    angles nearly (Johnson and Lindenstrauss 1984): comparing whole thumbnails would cost 16 times as much.
    """
    thumbs = torch.empty(len(rows), THUMBNAIL**2)
    for thumb, part in zip(thumbs.split(16), torch.from_numpy(rows).split(16)):  # as float they are larger
        grey = torch.from_numpy(pixels[part]).float().mean(1)
        thumb[:] = F.adaptive_avg_pool2d(grey, THUMBNAIL).flatten(1)
    thumbs -= thumbs.mean(0)
    thumbs -= thumbs.mean(1, keepdim=True)
    norm = thumbs.norm(dim=1)
    # A grey level and a half over all pixels: less is rounding, and rounding correlates by chance.
    keep = norm > 1.5 * THUMBNAIL
    rows, thumbs = rows[keep.numpy()], thumbs[keep] / norm[keep, None]
    sketches = F.normalize(thumbs @ torch.randn(THUMBNAIL**2, 64, generator=torch.Generator().manual_seed(0)))
    step = max(1, 2**25 // max(1, len(rows)))  # so many rows at a time, that memory stays bounded
    for start in range(0, len(rows), step):
        products = sketches[start : start + step] @ sketches[start:].T  # those from here on: each pair once
        first, second = torch.where(products > 1 - 4 * (1 - ALIKE))  # with room for chance
        first, second = first[first < second] + start, second[first < second] + start
        for i, j in zip(first.split(1024), second.split(1024)):
            alike = (thumbs[i] * thumbs[j]).sum(1) > ALIKE
            yield rows[torch.stack([i[alike], j[alike]], 1).numpy()]


def _by_key(rows, key_of):
    """Pairs that link the rows of equal keys; those whose key is None stand alone."""
    first = {}
    for i in rows:
        if (key := key_of(i)) is not None and (j := first.setdefault(key, i)) != i:
            yield j, i


def _links(parts, n):
    """Pairs that link the n rows as the pairs in all `parts` do. Of a large cluster that are far fewer."""
    links = np.empty((0, 2), int)
    for part in parts:
        links = np.concatenate([links, part])
        if len(links) > max(4 * n, 10_000):  # each row linked to the first of its group says the same
            _, first, group = np.unique(_components(links, n), return_index=True, return_inverse=True)
            links = np.stack([first[group], np.arange(n)], 1)
            links = links[links[:, 0] != links[:, 1]]
    return links.tolist()


def _components(pairs, n):
    """The number of the group of each of n rows, from pairs that belong together."""
    i, j = np.array(pairs, dtype=int).reshape(-1, 2).T
    return connected_components(coo_matrix((np.ones(len(i)), (i, j)), (n, n)), directed=False)[1]


def _too_coarse(groups, rows, labels):
    """Whether a class would have fewer than two groups, or one with over half of its images."""
    of_class = defaultdict(list)
    for i in rows:
        of_class[labels[i]].append(groups[i])
    return any(Counter(some).most_common(1)[0][1] * 2 > len(some) + 1 for some in of_class.values())


def group_images(images, names, pixels, digests, pattern):
    """-> (the group of each image as a text, None without digest; [KeptTogether]; notes).

    images: n (class, name, path); names: n paths to show and for `pattern`, that of --group or None.
    """
    n, labels = len(images), [label for label, _, _ in images]
    rows = [i for i, digest in enumerate(digests) if digest]

    stems = {(label, path.stem) for label, _, path in images}
    source_of = {}  # (class, stem) of an augmented picture -> that of what it was made from
    for label, stem in stems:
        found = AUGMENTED.fullmatch(stem)
        if found and (label, found[1]) in stems:
            source_of[label, stem] = label, found[1]
    sources = set(source_of.values())

    def version(i):
        if found := VERSION.match(images[i][2].name):
            return labels[i], found[1]
        key = labels[i], images[i][2].stem
        return source_of.get(key, key if key in sources else None)

    def of_user(i):
        found = pattern.search(names[i])
        return found and (found[1] if pattern.groups else found[0])

    kinds = {"versions of one picture, by their names": list(_by_key(rows, version))}
    if pattern:
        kinds["--group"] = list(_by_key(rows, of_user))
    copies, notes = list(_by_key(rows, digests.__getitem__)), []
    known = [*copies, *(pair for pairs in kinds.values() for pair in pairs)]
    groups = _components(known, n)
    near = [(i, j) for i, j in _links(near_copies(pixels, np.array(rows)), n) if groups[i] != groups[j]]
    if near and _too_coarse(_components([*known, *near], n), rows, labels):
        notes.append(
            f"{len({i for pair in near for i in pair})} images are so alike that their classes could not be "
            "split without them: they are not kept together; --group PATTERN can say which belong together"
        )
    else:
        kinds[NEAR] = near
    together = [
        _kept(reason, pairs, _components(pairs, n), names) for reason, pairs in kinds.items() if pairs
    ]
    if pattern and (alone := [i for i in rows if of_user(i) is None]):
        notes.append(f"--group fits no part of {len(alone)} names (as {names[alone[0]]}): each stands alone")
    groups = _components([*known, *kinds.get(NEAR, [])], n)
    return [str(group) if digest else None for group, digest in zip(groups, digests)], together, notes


def cut_folds(labels, groups, folds):
    """(rest, held out), as rows, of each fold: classes are stratified, equal `groups` stay together."""
    # The groups are numbered in a shuffled order and then cut unshuffled: what shuffle=True does since
    # scikit-learn 1.8. Before that, as on Python 3.10, it mixed up the groups and did not stratify (#32478).
    names, numbers = np.unique(groups, return_inverse=True)
    place = np.argsort(np.random.RandomState(0).permutation(len(names)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer images than folds
        yield from StratifiedGroupKFold(folds).split(numbers, labels.tolist(), place[numbers])


def _kept(reason, pairs, groups, names):
    members = sorted({i for pair in pairs for i in pair})
    example = f"{names[pairs[0][0]]} and {names[pairs[0][1]]}"
    return KeptTogether(reason, len({groups[i] for i in members}), len(members), example)
