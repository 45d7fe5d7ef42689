"""The networks that the ViT is compared with: a residual CNN of its size, written out, and ResNet-18."""

import torch
from torch import nn

import train


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input: figure 2 of He et al. 2016, with option B for the
    shortcut where the shape changes. (b, width_in, h, w) -> (b, width, h / stride, w / stride)."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).relu()


class CNN(nn.Module):
    """A small residual network: images (b, channels, height, width) -> logits (b, num_classes).

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, table 1: ResNet-18 at a quarter of its width. Two more blocks in
    the third stage bring it to the default ViT's 0.86 M parameters, and near its multiply-adds.
    """

    def __init__(self, *, num_classes, channels=1, widths=(16, 32, 64, 128), blocks=(2, 2, 4, 2)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, width_in = [], widths[0]
        for width, count in zip(widths, blocks):
            for i in range(count):
                stride = 2 if i == 0 and width != widths[0] else 1  # each stage but the first halves
                stages.append(BasicBlock(width_in, width, stride))
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
    return _fast(CNN(num_classes=num_classes, channels=recipe.channels))


def make_resnet18(recipe, num_classes):
    """torchvision's ResNet-18 for a recipe's images, its weights drawn from the recipe's seed."""
    from torchvision.models import resnet18

    torch.manual_seed(recipe.seed)
    model = resnet18(weights=None, num_classes=num_classes)
    if recipe.channels != 3:
        model.conv1 = nn.Conv2d(recipe.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return _fast(model)


def _fast(model):
    """In the layout in which convolutions are 1.2 to 1.4 times as fast."""
    return model.to(memory_format=torch.channels_last)


MAKERS = {"vit": train.make_model, "cnn": make_cnn, "resnet18": make_resnet18}


def make_cnn_optimizers(model, recipe):
    """[AdamW] at the recipe's learning_rate; its weight_decay acts on convolutions and linear layers
    alone, not on norms and biases."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": vectors, "weight_decay": 0.0}]
    fused = vectors[0].device.type in ("cpu", "cuda")
    return [torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused)]
