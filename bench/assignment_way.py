"""The assignment's own way, as a peer to measure beside: its code template with the example report's values.

Files opened again in each epoch by ImageFolder and DataLoader workers, float32, and the ViT of the
public package vit-pytorch, which has the layout that the template asks for. Nothing here is used by
run.py.
"""

import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from vit_pytorch import ViT


def make_loaders(split_folder, recipe, workers):
    """(training, test) DataLoaders over a written split, with the template's transforms."""
    side = (recipe.image_size, recipe.image_size)
    shared = [transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
    grey_square = [transforms.Resize(side), transforms.Grayscale(num_output_channels=1)]
    changes = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.ColorJitter(recipe.brightness, recipe.contrast),
    ]
    train = ImageFolder(split_folder / "train", transforms.Compose([*grey_square, *changes, *shared]))
    test = ImageFolder(split_folder / "test", transforms.Compose([*grey_square, *shared]))
    settings = {"batch_size": recipe.batch_size, "num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(train, shuffle=True, **settings), DataLoader(test, **settings)


def make_model(recipe, num_classes):
    torch.manual_seed(recipe.seed)
    return ViT(
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        num_classes=num_classes,
        channels=recipe.channels,
        dim=recipe.dim,
        depth=recipe.depth,
        heads=recipe.heads,
        dim_head=recipe.dim_head,
        mlp_dim=recipe.mlp_dim,
        dropout=recipe.dropout,
        emb_dropout=recipe.emb_dropout,
    )


def fit(split_folder, recipe, device, workers):
    """Train for the recipe's epochs; yields (epoch, training seconds, seconds so far, test accuracy)."""
    train_loader, test_loader = make_loaders(split_folder, recipe, workers)
    model = make_model(recipe, len(train_loader.dataset.classes)).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    begin = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        for data, target in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.to(device)), target.to(device))
            loss.backward()
            optimizer.step()
            loss.item()  # the template prints and keeps the loss
        scheduler.step()
        train_seconds = time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            correct = sum(
                (model(data.to(device)).argmax(-1).cpu() == target).sum().item()
                for data, target in test_loader
            )
        yield epoch, train_seconds, time.perf_counter() - begin, correct / len(test_loader.dataset)
