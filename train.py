"""Training and evaluation by hand: the assignment's steps 4 and 5.

AdamW with linear warm-up and cosine decay (Loshchilov & Hutter 2019, arXiv:1711.05101), gradient
clipping and mixed precision: bf16 where the hardware has it, fp16 with loss scaling on older GPUs,
else fp32.
"""

import copy
import ctypes
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from recipe import InputError
from vit import ViT


def keep_freed_memory():
    """Have the C library keep what tensors free for the next step's: training is up to 1.4 times as fast.

    Else glibc gives blocks of megabytes back to the system at once, and the system clears new pages
    for them in the next step. Blocks over 32 MiB (the most that glibc allows here) still go back.
    No effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; Windows
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    mallopt(M_MMAP_THRESHOLD, 2**25)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(name="auto"):
    """The torch.device called auto, cpu, cuda or mps. InputError if this machine has none such."""
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in has.items() if there)
    if not has[name]:
        raise InputError(f"--device {name}: PyTorch finds none here; use --device auto or cpu")
    return torch.device(name)


def has_bf16(device):
    """Whether the device multiplies bf16 matrices in hardware (software bf16 is slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 and later
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def choose_precision(name, device):
    """ "fp32", "bf16" or "fp16" for auto or such a name. InputError where the device lacks it."""
    if name == "auto":
        if has_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise InputError("--precision fp16 needs an NVIDIA GPU; use --precision auto, bf16 or fp32")
    return name


def autocast(device, precision):
    """The context in which forward passes run at that precision."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def make_model(recipe, num_classes):
    """The ViT of a recipe, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return ViT(
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        num_classes=num_classes,
        dim=recipe.dim,
        depth=recipe.depth,
        heads=recipe.heads,
        mlp_dim=recipe.mlp_dim,
        pool=recipe.pool,
        channels=recipe.channels,
        dim_head=recipe.dim_head,
        dropout=recipe.dropout,
        emb_dropout=recipe.emb_dropout,
    )


def orthogonalize(matrices):
    """Matrices of one shape (m, rows, columns), float32 -> the nearest orthogonal ones, roughly, same shape.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024: they bring all but the smallest
    singular values to between 0.7 and 1.2, not all to 1, which is as good for Muon and takes fewer steps.
    """
    x = matrices.bfloat16() if has_bf16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller of the two products with its transpose
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, gram, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum for matrices, made orthogonal, so that a step moves all directions of a matrix equally far.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with Nesterov momentum 0.95 and the
    rate of a matrix times sqrt(max(1, rows / columns)). The steps are those of torch.optim.Muon up to
    rounding; here all matrices of one shape are taken at once, in half the time on two CPU cores.
    """

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in dict.fromkeys(p.shape for p in group["params"]):
                matrices = [p for p in group["params"] if p.shape == shape]
                gradients = torch.stack([p.grad for p in matrices])
                state = self.state[matrices[0]]  # of all of this shape
                if not state:
                    state["momentum"] = torch.zeros_like(gradients)
                momentum = state["momentum"].lerp_(gradients, 1 - 0.95)
                updates = orthogonalize(gradients.lerp_(momentum, 0.95))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-rate)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimizer."""

    def __init__(self, muon, adamw):
        self.both = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        # The same dicts, so that a scheduler of this optimizer sets the rates of both.
        self.param_groups = [*muon.param_groups, *adamw.param_groups]

    def step(self):
        for optimizer in self.both:
            optimizer.step()

    def state_dict(self):
        return {"both": [optimizer.state_dict() for optimizer in self.both]}

    def load_state_dict(self, state):
        for optimizer, its_state in zip(self.both, state["both"]):
            optimizer.load_state_dict(its_state)
        self.param_groups = [group for optimizer in self.both for group in optimizer.param_groups]


def make_optimizer(model, recipe):
    """Muon for the matrices that feed a layer, AdamW for the last layer's and for all vectors.

    With muon_learning_rate = 0 it is AdamW for all. Weight decay acts on the matrices alone, not on
    biases, norms, class token or positions.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    by_muon = [p for p in matrices if p is not model.mlp_head[-1].weight] if recipe.muon_learning_rate else []
    by_adamw = matrices[len(by_muon) :]  # the head comes last
    adamw = torch.optim.AdamW(
        [{"params": by_adamw}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=vectors[0].device.type in ("cpu", "cuda"),
    )
    if not by_muon:
        return adamw
    muon = Muon(by_muon, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
    return MuonAdamW(muon, adamw)


def make_scheduler(optimizer, recipe, steps_per_epoch):
    """Learning rate by step: linear from 0 over the warm-up, then half a cosine down to 0."""
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)

    def share(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def is_out_of_memory(error):
    """Whether an error says that memory is too small: a GPU's, Apple's, or the main memory."""
    said = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")  # by plain RuntimeErrors
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in said)


def add_gradients(model, data, target, part, *, scaler, precision="fp32", label_smoothing=0.0):
    """Add the gradients of a batch's mean loss, `part` images at a time: (loss, logits (b, classes)).

    However a batch is cut, its gradients are those of the whole batch, up to rounding: each part's loss
    counts by its share of the images, which were augmented and mixed before. Only what a layer draws
    (dropout) or takes from the whole batch (batch normalisation) is other than in one piece.
    """
    loss, outputs = 0.0, []
    for images, labels in zip(data.split(part), target.split(part)):
        with autocast(data.device, precision):
            output = model(images).float()
        share = F.cross_entropy(output, labels, label_smoothing=label_smoothing) * (len(images) / len(data))
        scaler.scale(share).backward()
        loss += share.detach()
        outputs.append(output.detach())
    return loss, torch.cat(outputs)


def halved(part):
    """Half as many images, after memory ran out."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # its blocks have sizes that will not be asked for again
    return part // 2


def backward(model, data, target, data_loader, log=print, **how):
    """`add_gradients` in parts that fit in the memory: `data_loader.part` images, which is halved for this
    and all later batches where memory runs out. Raises that error if one image is too many."""
    whole = part = min(data_loader.part, len(data))
    while True:
        try:
            result = add_gradients(model, data, target, part, **how)
            break
        except (RuntimeError, MemoryError) as error:
            if part == 1 or not is_out_of_memory(error):
                raise
        part = halved(part)  # out here the error is gone, and with it the tensors that it held
        model.zero_grad()
    if part < whole:
        data_loader.part = part
        log(f"Memory is too small for a whole batch: {part} images at a time, gradients added up")
    return result


def train_epoch(
    model,
    optimizer,
    data_loader,
    loss_history,
    *,
    scheduler=None,
    scaler=None,
    precision="fp32",
    label_smoothing=0.0,
    clip_norm=0.0,
    log=print,
    tick=lambda: None,
):
    """One pass over the training images: (mean loss, accuracy) on the augmented batches.

    About six times an epoch the loss of the batch is printed and appended to `loss_history`.
    InputError if the loss is no longer a finite number.
    """
    model.train()
    total_samples = len(data_loader.dataset)
    log_interval = math.ceil(len(data_loader) / 6)
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    loss_sum = correct = 0

    how = {"scaler": scaler, "precision": precision, "label_smoothing": label_smoothing}

    for i, (data, target) in enumerate(data_loader):
        optimizer.zero_grad()
        loss, output = backward(model, data, target, data_loader, log, **how)
        if clip_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if scheduler:
            scheduler.step()

        # Sums stay on the device: reading them each step would make a GPU wait.
        loss_sum += loss * len(data)
        # Of a mixed image, the class that has the larger share counts.
        labels = target if target.ndim == 1 else target.argmax(-1)
        correct += (output.argmax(-1) == labels).sum()
        if i % log_interval == 0:
            done = i * data_loader.batch_size
            share = 100 * done / total_samples
            log(f"[{done:5d}/{total_samples} ({share:3.0f} %)] Loss: {loss.item():.4f}")
            loss_history.append(loss.item())
        tick()

    mean_loss = float(loss_sum) / total_samples
    if not math.isfinite(mean_loss):
        rate = optimizer.param_groups[0]["lr"]
        raise InputError(
            f"the training loss became {mean_loss} (learning rate {rate:.1e}, precision {precision}): "
            f"try --set learning_rate={rate / 3:.0e}, a longer warm-up, or --precision fp32"
        )
    return mean_loss, int(correct) / total_samples


def symmetries(images, flip, transpose):
    """Square images (b, c, side, side) as they are, then flipped and transposed in all ways allowed."""
    flips = ((), (-1,), (-2,), (-1, -2)) if flip else ((),)
    for turned in (images, images.transpose(-1, -2)) if transpose else (images,):
        for dims in flips:
            yield turned.flip(dims)


def test_views(recipe):
    """The arguments of `predict` that average over the symmetries that the recipe trained with."""
    return {name: recipe.test_views and getattr(recipe, name) for name in ("flip", "transpose")}


@torch.no_grad()
def predict(model, data_loader, precision="fp32", flip=False, transpose=False):
    """The logits (n, classes), float32, and labels (n) of all images, in order.

    With `flip` or `transpose` an image's logits are the mean over all its `symmetries`. Where memory is
    too small for a batch, its images are taken half as many at a time.
    """
    model.eval()
    logits, labels, part = [], [], None
    for data, target in data_loader:
        done, part = 0, part or len(data)
        while done < len(data):
            try:
                with autocast(data.device, precision):
                    views = symmetries(data[done : done + part], flip, transpose)
                    logits.append(torch.stack([model(view).float() for view in views]).mean(0))
                done += part
                continue
            except (RuntimeError, MemoryError) as error:
                if part == 1 or not is_out_of_memory(error):
                    raise
            part = halved(part)  # out here, as in `backward`
        labels.append(target)
    return torch.cat(logits), torch.cat(labels)


def evaluate(model, data_loader, loss_history, *, precision="fp32", log=print, **views):
    """Score the model: (mean cross-entropy, number correct, logits). Prints the assignment's line.

    `views` are the arguments `flip` and `transpose` of `predict`.
    """
    total_samples = len(data_loader.dataset)
    logits, labels = predict(model, data_loader, precision, **views)
    loss = F.cross_entropy(logits, labels).item()
    correct = (logits.argmax(-1) == labels).sum().item()
    loss_history.append(loss)
    log(f"Average test loss: {loss:.4f} Accuracy: {correct}/{total_samples} ({correct / total_samples:.2%})")
    return loss, correct, logits


def estimate_seconds(model, train_loader, test_loader, recipe, precision, log=print):
    """How long `fit` will take, from two trial steps on copies of the model and of the loader.

    If memory is too small for a whole batch, they find out the part of it that fits.
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    trial, batches = copy.deepcopy(model), copy.copy(train_loader)
    batches.generator, batches.rng = torch.Generator(device).manual_seed(0), np.random.default_rng(0)
    optimizer, batches = make_optimizer(trial, recipe), iter(batches)
    scaler = torch.amp.GradScaler(enabled=False)
    with torch.random.fork_rng():  # dropout draws from it: training starts as if nothing had been
        for _ in range(2):  # the first is slower than all others
            start = time.perf_counter()
            images, target = next(batches, (None, None))
            if images is None:  # there is one batch only
                break
            backward(trial, images, target, train_loader, log, scaler=scaler, precision=precision)
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - start) / len(images)
    # Scoring an image takes the forward pass alone, about a third of a step.
    return seconds * (len(train_loader.dataset) + len(test_loader.dataset) / 3) * recipe.epochs


def fit(
    model,
    train_loader,
    test_loader,
    recipe,
    *,
    optimizer=None,
    precision="fp32",
    log=print,
    tick=lambda: None,
    begin=None,
):
    """Train for the recipe's epochs, scoring the test images after each; yields a row an epoch.

    The test score is printed for the log and decides nothing: no choice of epoch, no early stop.
    The last epoch, whose score is the result, is scored in fp32 so that other machines can repeat
    it, and with all the recipe's test views. A row holds epoch, learning_rate, train_loss,
    train_accuracy, test_loss, test_accuracy, train_seconds, and seconds with the scoring. Without an
    `optimizer`, `make_optimizer` makes it. `begin` is called with the parts that have a state, may
    restore it, and returns the number of epochs already done.
    """
    keep_freed_memory()
    optimizer = optimizer or make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, len(train_loader))
    scaler = torch.amp.GradScaler(enabled=precision == "fp16")
    train_loss_history, test_loss_history = [], []
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    done = begin(loader=train_loader, **parts) if begin else 0

    for epoch in range(done + 1, recipe.epochs + 1):
        start = time.perf_counter()
        log(f"Epoch: {epoch}")
        train_loss, train_accuracy = train_epoch(
            model,
            optimizer,
            train_loader,
            train_loss_history,
            scheduler=scheduler,
            scaler=scaler,
            precision=precision,
            label_smoothing=recipe.label_smoothing,
            clip_norm=recipe.clip_norm,
            log=log,
            tick=tick,
        )
        train_seconds = time.perf_counter() - start
        last = epoch == recipe.epochs
        test_loss, correct, _ = evaluate(
            model,
            test_loader,
            test_loss_history,
            precision="fp32" if last else precision,
            log=log,
            **(test_views(recipe) if last else {}),
        )
        yield {
            "epoch": epoch,
            "learning_rate": scheduler.get_last_lr()[0],
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": correct / len(test_loader.dataset),
            "train_seconds": train_seconds,
            "seconds": time.perf_counter() - start,
        }
