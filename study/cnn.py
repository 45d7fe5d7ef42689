"""The networks that the ViT is compared with, a residual CNN of its size and ResNet-18; and how large and
how fast a network is."""

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, resnet18

import train
from lab.training import DTYPES

FAST = torch.channels_last  # the layout in which convolutions are 1.2 to 1.4 times as fast


class CNN(nn.Module):
    """A small residual network: images (b, channels, height, width) -> logits (b, num_classes).

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, table 1: about a quarter of ResNet-18's width and half of its blocks,
    which brings it near the default ViT's 0.46 M parameters and 53 M multiply-adds.
    """

    def __init__(self, *, num_classes, channels=1, widths=(16, 32, 64, 144), blocks=(1, 1, 2, 1)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, width_in = [], widths[0]
        for width, count in zip(widths, blocks):
            shortcut = None
            if width != width_in:  # each stage but the first halves the sides: option B of the paper
                shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, 2, bias=False), nn.BatchNorm2d(width))
            stages.append(BasicBlock(width_in, width, 2 if shortcut else 1, shortcut))
            stages += [BasicBlock(width, width) for _ in range(count - 1)]
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, img):
        return self.head(self.stages(self.stem(img)).mean((-2, -1)))


def make_cnn(recipe, num_classes):
    """The CNN for a recipe's images, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return CNN(num_classes=num_classes, channels=recipe.channels).to(memory_format=FAST)


def make_resnet18(recipe, num_classes):
    """torchvision's ResNet-18 for a recipe's images, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = resnet18(weights=None, num_classes=num_classes)
    if recipe.channels != 3:
        model.conv1 = nn.Conv2d(recipe.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model.to(memory_format=FAST)


MAKERS = {"vit": train.make_model, "cnn": make_cnn, "resnet18": make_resnet18}


def make_cnn_optimizers(model, recipe):
    """[AdamW] at the recipe's learning_rate; its weight_decay acts on convolutions and linear layers
    alone, not on norms and biases."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": vectors, "weight_decay": 0.0}]
    fused = vectors[0].device.type in ("cpu", "cuda")
    return [torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused)]


def count_mult_adds(model, image_shape):
    """Multiply-adds of one image (channels, height, width) through the model: half of what PyTorch's
    FlopCounterMode counts, which is all matrix products, attention's too, and all convolutions."""
    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return counter.get_total_flops() // 2


def inference_rate(model, image_shape, precision, batch_size=64):
    """Images a second through the model, one view each: the median over batches, after a first one."""
    device, dtype = next(model.parameters()).device, DTYPES[precision]
    batch = torch.randn(batch_size, *image_shape, device=device)
    timer = Timer(
        "model(batch).sum().item()",  # item() waits for a GPU
        globals={"model": model.eval(), "batch": batch},
        num_threads=torch.get_num_threads(),  # else it takes one
    )
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return batch_size / timer.blocked_autorange().median
