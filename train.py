"""Training and evaluation by hand: the assignment's steps 4 and 5.

Muon for the matrices and AdamW for the rest, linear warm-up and cosine decay of the learning rates,
gradient clipping, and mixed precision.
"""

import math
import time
from collections import namedtuple

import torch
import torch.nn.functional as F

from vit import ViT


def make_model(settings, num_classes):
    """The ViT of these settings, its weights drawn from their seed."""
    torch.manual_seed(settings.seed)  # right before: nothing else draws from it in between
    names = "image_size patch_size channels dim depth heads dim_head mlp_dim pool dropout emb_dropout mimetic"
    return ViT(num_classes=num_classes, **{name: getattr(settings, name) for name in names.split()})


def make_optimizers(model, settings):
    """[AdamW, Muon]: Muon for the matrices that feed a layer, AdamW for the last layer's and all vectors.
    Muon makes the momentum of a matrix orthogonal: a step moves all its directions equally far (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon). With muon_learning_rate = 0 AdamW has them all."""
    head = model.mlp_head[-1].weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not head]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    muon = settings.muon_learning_rate > 0
    # Weight decay acts on matrices alone: a norm's scale or a position gains nothing by being small.
    groups = [{"params": [head] if muon else [*matrices, head]}, {"params": vectors, "weight_decay": 0.0}]
    decay = settings.weight_decay
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=decay, fused=True)
    others = [torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=decay)] if muon else []
    return [adamw, *others]


def make_schedulers(optimizers, settings, steps_per_epoch):
    """Learning rates by step: linear from 0 over the warm-up, then half a cosine down to 0."""
    total = settings.epochs * steps_per_epoch  # steps, as a rate that changes by epoch would jump
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)

    def share(step):
        if step < warmup:
            return (step + 1) / warmup  # + 1: a first step of rate 0 would be lost
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]


def train_epoch(model, optimizer, data_loader, loss_history, *, schedulers=(), scaler=None,
                precision=torch.float32, label_smoothing=0.0, clip_norm=0.0):  # fmt: skip
    """One pass over the training images: (mean loss, accuracy) on the batches as they come, some six of whose
    losses are printed and put into `loss_history`. `optimizer` is one or a list."""
    model.train()
    device, total, seen, losses, correct = next(model.parameters()).device, len(data_loader.dataset), 0, 0, 0
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    for i, (data, target) in enumerate(data_loader):
        data, target = data.to(device), target.to(device)
        model.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = model(data).float()  # softmax and loss in float32: exp overflows early in float16
        loss = F.cross_entropy(output, target, label_smoothing=label_smoothing)
        scaler.scale(loss).backward()
        if clip_norm:
            for each in optimizers:
                scaler.unscale_(each)  # the norm is that of the true gradients
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for each in optimizers:
            scaler.step(each)
        scaler.update()  # lower after an overflow, whose step was skipped, and higher after a while
        for scheduler in schedulers:
            scheduler.step()
        losses += loss.detach() * len(data)  # on the device: reading it each step would make a GPU wait
        target = target if target.ndim == 1 else target.argmax(-1)  # of a mixed image the larger share
        correct += (output.argmax(-1) == target).sum()
        if i % math.ceil(len(data_loader) / 6) == 0:
            print(f"[{seen:5d}/{total} ({100 * seen / total:3.0f} %)] Loss: {loss.item():.4f}")
            loss_history.append(loss.item())
        seen += len(data)
    if not math.isfinite(losses):
        raise ValueError(f"the training loss became {float(losses)}")
    return float(losses) / total, int(correct) / total


def views_of(images, settings):
    """Test-time augmentation: views (b, c, side, side) of test images, turned and shifted as in training."""
    # A quarter of a patch to a corner, where other patches begin; with flips two opposite corners are enough.
    side, pad = images.shape[-1], min(round(settings.crop * images.shape[-1]), settings.patch_size // 4)
    padded, ends = F.pad(images, (pad,) * 4, mode="reflect"), {0, 2 * pad}
    corners = [(y, x) for y in ends for x in ends if x == y or not settings.flip]
    views = (padded[..., y : y + side, x : x + side] for y, x in corners)  # one by one: all are large
    flips = [(), (-1,), (-2,), (-1, -2)][: (4 if settings.vertical_flip else 2) if settings.flip else 1]
    views = (view.flip(dims) for view in views for dims in flips)
    return (turned for view in views for turned in ([view, view.mT] if settings.transpose else [view]))


@torch.no_grad()
def predict(model, data_loader, settings=None, *, precision=torch.float32):
    """The logits (n, classes), float32, and labels (n) of all images; with `settings`, over `views_of`."""
    model.eval()
    device, logits, labels = next(model.parameters()).device, [], []
    for data, target in data_loader:
        views = views_of(data.to(device), settings) if settings and settings.test_views else [data.to(device)]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits.append(torch.stack([model(view).float() for view in views]).mean(0))
        labels.append(target.to(device))
    return torch.cat(logits), torch.cat(labels)


def evaluate(model, data_loader, loss_history, settings=None, **how):
    """Score the model as `predict` does: (mean loss, number correct, logits). Prints the template's line."""
    logits, labels = predict(model, data_loader, settings, **how)
    loss = F.cross_entropy(logits, labels).item()
    correct, total = (logits.argmax(-1) == labels).sum().item(), len(labels)
    loss_history.append(loss)
    print(f"Average test loss: {loss:.4f} Accuracy: {correct}/{total} ({correct / total:.2%})")
    return loss, correct, logits


# What `fit` tells of an epoch; rates: the optimizers', after it; logits: the test images', (n, classes).
Epoch = namedtuple("Epoch", "number rates train_loss train_accuracy train_seconds test_loss correct logits")


def fit(model, optimizers, schedulers, train_loader, test_loader, settings, train_losses, test_losses, *,
        scaler=None, precision=torch.float32, first_epoch=1):  # fmt: skip
    """Train, and score the test images after each epoch, which decides nothing: yields an Epoch each time."""
    for number in range(first_epoch, settings.epochs + 1):
        print("Epoch:", number)
        start = time.perf_counter()
        train_loss, accuracy = train_epoch(
            model, optimizers, train_loader, train_losses, schedulers=schedulers, scaler=scaler,
            label_smoothing=settings.label_smoothing, clip_norm=settings.clip_norm, precision=precision,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        # The last score, the result, is over all views, and in float32, to be repeated.
        how = {"settings": settings} if number == settings.epochs else {"precision": precision}
        loss, correct, logits = evaluate(model, test_loader, test_losses, **how)
        rates = [scheduler.get_last_lr()[0] for scheduler in schedulers]
        yield Epoch(number, rates, train_loss, accuracy, seconds, loss, correct, logits)
