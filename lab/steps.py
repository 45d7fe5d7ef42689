"""A training step as the machine takes it best. What train.py computes stays as it is."""

import warnings
from collections import defaultdict

import torch


def without_compiler():
    """Have optimizers leave out the import of what torch.compile needs, which nothing here uses: it takes
    2 s and 150 MB. No effect where PyTorch does not wrap their methods as it does now."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method:  # what the wrapper would make of it, at the price of that import
            setattr(method, "__dynamo_disable", method)


class EagerAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, whose step is the same without that import."""

    step = torch.no_grad()(getattr(torch.optim.AdamW.step, "__wrapped__", torch.optim.AdamW.step))


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon with one product for all matrices of a shape: the same numbers, in fewer kernels.

    On a GPU that takes a quarter off the whole step of so small a model. State and groups are its parent's.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for (rows, columns), matrices in by_shape.items():
                gradients = torch.stack([p.grad for p in matrices])
                states = [self.state[p] for p in matrices]
                if not states[0]:  # the first step
                    means = torch.zeros_like(gradients)
                else:
                    means = torch.stack([state["momentum_buffer"] for state in states])
                means.lerp_(gradients, 1 - group["momentum"])
                for state, mean in zip(states, means):
                    state["momentum_buffer"] = mean
                changes = gradients.lerp(means, group["momentum"]) if group["nesterov"] else means
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for p, change in zip(matrices, orthogonal(changes, group)):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=rate)


def orthogonal(matrices, group):
    """About U V^T of each of the matrices U S V^T (n, rows, columns): Newton-Schulz, in bfloat16."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonal(matrices.mT, group).mT
    a, b, c = group["ns_coefficients"]
    x = matrices.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=group["eps"])  # no singular value over 1
    for _ in range(group["ns_steps"]):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def faster(optimizers):
    """The optimizers with the same steps in less time: each Muon batched, each AdamW without the compiler."""

    def better(optimizer):
        if type(optimizer) is torch.optim.Muon:
            return BatchedMuon(optimizer.param_groups)
        if type(optimizer) is torch.optim.AdamW:
            return EagerAdamW(optimizer.param_groups, fused=optimizer.defaults["fused"])
        return optimizer

    return [better(optimizer) for optimizer in optimizers]


def capture(model, shape, precision):
    """On a CUDA device: record the kernels of the forward and backward pass for a batch of this shape, and
    start them all at once from then on. One by one, starting them takes most of the time of a small model.

    precision: the torch.dtype of the passes. Not for gradients that add up over several passes.
    """
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng(),  # dropout draws from it
        torch.autocast("cuda", precision, precision != torch.float32, cache_enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of a thread of PyTorch's own that is new to the device
        torch.cuda.make_graphed_callables(model.train(), (torch.rand(shape, device=device),))
    if quiet := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):
        quiet(False)  # the gradients add up on the stream of the recording, which is meant
    recorded, whole = model.forward, type(model).forward

    def forward(images):
        return recorded(images) if images.shape == shape else whole(model, images)

    model.forward = forward
