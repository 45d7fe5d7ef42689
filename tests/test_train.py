import math
import re

import pytest
import torch
from conftest import TINY, make_folder
from sklearn.metrics import accuracy_score, log_loss

import data
import train
from recipe import InputError, load_recipe, parse_setting

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("train")
    make_folder(home / "d", {"a": 20, "b": 20, "c": 20})
    return data.load_data(home / "d", home / "split", tiny())


def tiny(**changes):
    return load_recipe("default", [*map(parse_setting, TINY), *changes.items()])


def trained(images, recipe, precision="fp32"):
    """(model, rows, log lines) of a run on the CPU."""
    lines = []
    model = train.make_model(recipe, len(images.classes))
    loaders = data.make_loaders(images, recipe, CPU)
    rows = list(train.fit(model, *loaders, recipe, precision=precision, log=lines.append))
    return model, rows, lines


def test_the_model_learns(images):
    _, rows, _ = trained(images, tiny(epochs=30))
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert rows[-1]["test_accuracy"] >= 0.8


def test_same_seed_same_weights_bit_for_bit(images):
    precisions = ["fp32", "bf16"] if train.has_bf16(CPU) else ["fp32"]
    for precision in precisions:
        first, _, _ = trained(images, tiny(dropout=0.1, epochs=2), precision)
        second, _, _ = trained(images, tiny(dropout=0.1, epochs=2), precision)
        other, _, _ = trained(images, tiny(dropout=0.1, epochs=2, seed=1), precision)
        for name, weights in first.state_dict().items():
            assert torch.equal(weights, second.state_dict()[name])
        assert not torch.equal(first.cls_token, other.cls_token)


def test_log_lines_are_the_assignments(images):
    _, rows, lines = trained(images, tiny(epochs=2))
    assert lines[0] == "Epoch: 1"
    assert re.fullmatch(r"\[    0/42 \(  0 %\)\] Loss: \d\.\d{4}", lines[1])
    assert re.fullmatch(r"\[    8/42 \( 19 %\)\] Loss: \d\.\d{4}", lines[2])
    scored = [line for line in lines if line.startswith("Average")]
    assert len(scored) == 2
    assert re.fullmatch(r"Average test loss: \d\.\d{4} Accuracy: \d+/18 \(\d+\.\d\d%\)", scored[-1])
    assert f"Average test loss: {rows[-1]['test_loss']:.4f} " in scored[-1]


def test_evaluate_agrees_with_scikit_learn(images):
    model, _, _ = trained(images, tiny(epochs=2))
    _, loader = data.make_loaders(images, tiny(), CPU)
    losses = []
    loss, correct, logits = train.evaluate(model, loader, losses, flip=True, log=lambda line: None)
    assert losses == [loss]
    labels = images.test.labels
    assert correct / len(labels) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert loss == pytest.approx(log_loss(labels, logits.double().softmax(-1)), abs=1e-5)


def test_symmetries_are_the_flips_and_quarter_turns_that_are_allowed():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)

    def views(flip, transpose):
        return [tuple(view.flatten().tolist()) for view in train.symmetries(image, flip, transpose)]

    turned = [torch.rot90(x, k, (-2, -1)) for k in range(4) for x in (image, image.mT)]
    assert sorted(views(True, True)) == sorted(tuple(x.flatten().tolist()) for x in turned)
    assert views(False, False) == [tuple(image.flatten().tolist())]
    assert len(set(views(True, False))) == 4
    assert views(True, True)[0] == views(True, False)[0] == views(False, False)[0]


def test_a_flipped_image_gets_the_same_prediction_from_all_flips(images):
    model, _, _ = trained(images, tiny(epochs=1))
    _, loader = data.make_loaders(images, tiny(), CPU)
    batches = [(batch.flip(-1), labels) for batch, labels in loader]
    upright, _ = train.predict(model, loader, flip=True)
    flipped, _ = train.predict(model, batches, flip=True)
    torch.testing.assert_close(flipped, upright, atol=1e-4, rtol=0)
    assert not torch.allclose(train.predict(model, batches)[0], train.predict(model, loader)[0], atol=1e-3)


def test_test_views_are_those_that_were_trained_with():
    assert train.test_views(tiny(transpose=False)) == {"flip": True, "transpose": False}
    assert not any(train.test_views(tiny(test_views=False)).values())


def test_the_last_row_is_the_score_of_the_returned_weights_in_fp32(images):
    model, rows, _ = trained(images, tiny(epochs=2), "bf16")
    _, loader = data.make_loaders(images, tiny(), CPU)
    loss, correct, _ = train.evaluate(model, loader, [], flip=True, log=lambda line: None)
    assert rows[-1]["test_loss"] == loss
    assert rows[-1]["test_accuracy"] == correct / len(images.test.files)


def test_train_epoch_keeps_the_templates_leading_arguments(images):
    recipe = tiny()
    model = train.make_model(recipe, 3)
    train_loader, test_loader = data.make_loaders(images, recipe, CPU)
    losses, test_losses = [], []
    train.train_epoch(model, train.make_optimizer(model, recipe), train_loader, losses)
    train.evaluate(model, test_loader, test_losses)
    assert len(losses) == 6
    assert len(test_losses) == 1


def test_the_estimate_is_the_time_of_a_step_for_all_steps_and_changes_nothing(images, monkeypatch):
    recipe = tiny(dropout=0.1, epochs=12)
    model = train.make_model(recipe, 3)
    loaders = data.make_loaders(images, recipe, CPU)
    undisturbed = next(iter(data.make_loaders(images, recipe, CPU)[0]))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    draw = torch.random.get_rng_state()
    clock = iter([0.0, 5.0, 10.0, 10.5])  # the first step, slow, and the second
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    expected = train.estimate_seconds(model, *loaders, recipe, "fp32")
    # A step of 8 images took 0.5 s; 42 training images and a third of the cost for 18 test images, 12 epochs
    assert expected == pytest.approx(0.5 / 8 * (42 + 18 / 3) * 12)
    assert all(torch.equal(a, b) for a, b in zip(next(iter(loaders[0])), undisturbed))
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_the_test_split_changes_nothing_in_training(images):
    whole, _, _ = trained(images, tiny(epochs=2))
    smaller = images._replace(test=data.Split(*(part[:5] for part in images.test)))
    other, _, _ = trained(smaller, tiny(epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters()))


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    recipe = tiny(epochs=10, warmup_epochs=2.0, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    scheduler = train.make_scheduler(optimizer, recipe, steps_per_epoch=5)
    rates = []
    for _ in range(50):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[30] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 20 / 40)))
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_weight_decay_reaches_the_matrices_alone():
    model = train.make_model(tiny(), 3)
    for recipe in (tiny(), tiny(muon_learning_rate=0.0)):
        *decayed, free = train.make_optimizer(model, recipe).param_groups
        matrices = [p for group in decayed for p in group["params"]]
        assert {p.ndim for p in matrices} == {2}
        assert {group["weight_decay"] for group in decayed} == {0.05}
        assert free["weight_decay"] == 0
        assert len(matrices) + len(free["params"]) == len(list(model.parameters()))
        assert any(p is model.pos_embedding for p in free["params"])


def test_muon_turns_the_encoders_matrices_and_adamw_the_head():
    """One step of Muon from zero momentum moves a matrix by an orthogonal one, near enough."""
    recipe = tiny(weight_decay=0.0, warmup_epochs=0.0)
    model = train.make_model(recipe, 3)
    optimizer = train.make_optimizer(model, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(16, 1, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    step = moved["transformer.layers.0.1.fn.net.0.weight"]  # 64 x 32
    sizes = torch.linalg.svdvals(step) / (recipe.muon_learning_rate * math.sqrt(64 / 32))
    assert sizes.max() < 1.5
    assert (sizes > 0.5).sum() >= 30  # of 32; the smallest take more steps of its iteration than it makes
    # AdamW's first step is the learning rate, whatever the gradient.
    assert moved["mlp_head.1.weight"].abs().median() == pytest.approx(recipe.learning_rate, rel=0.01)
    assert moved["cls_token"].abs().median() == pytest.approx(recipe.learning_rate, rel=0.01)


@pytest.mark.parametrize("rows, columns", [(48, 16), (16, 48), (32, 32)])
def test_muon_takes_the_steps_of_pytorchs_own(rows, columns):
    """Up to bf16's rounding, whose order the batched products change."""
    torch.manual_seed(0)
    start = [0.1 * torch.randn(rows, columns) for _ in range(3)] + [0.1 * torch.randn(8, 24)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    ways = [
        (matrices, muon(matrices, lr=0.02, weight_decay=0.1))
        for matrices, muon in ((ours, train.Muon), (theirs, torch.optim.Muon))
    ]
    for _ in range(5):
        gradients = [torch.randn_like(p) for p in start]
        for matrices, optimizer in ways:
            for p, gradient in zip(matrices, gradients):
                p.grad = gradient.clone()
            optimizer.step()
    for p, q, begin in zip(ours, theirs, start):
        assert (p - q).norm() < 0.01 * (q - begin).norm()


def test_orthogonalized_matrices_keep_their_singular_vectors():
    """Newton-Schulz in float64 changes the singular values alone, to between 0.6 and 1.3."""
    torch.manual_seed(0)
    values = torch.linspace(0.1, 2.0, 12).double()
    for rows, columns in ((12, 20), (20, 12)):
        left, right = (torch.linalg.qr(torch.randn(2, n, 12).double()).Q for n in (rows, columns))
        turned = train.orthogonalize(left * values @ right.mT)
        inner = left.mT @ turned.double() @ right
        sizes = inner.diagonal(dim1=1, dim2=2)
        tolerance = 0.05 if train.has_bf16(CPU) else 1e-6
        assert (inner - torch.diag_embed(sizes)).abs().max() < tolerance
        assert sizes.min() > 0.6 and sizes.max() < 1.3


def test_a_loss_that_is_no_number_stops_and_says_what_to_change(images):
    model = train.make_model(tiny(), 3)
    torch.nn.init.constant_(model.cls_token, math.nan)
    loader, _ = data.make_loaders(images, tiny(), CPU)
    with pytest.raises(InputError, match=r"loss became nan \(learning rate .*--set learning_rate=") as caught:
        train.train_epoch(model, train.make_optimizer(model, tiny()), loader, [])
    assert "\n" not in str(caught.value)


def test_devices_and_precisions_that_are_not_there_are_refused():
    assert train.choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: PyTorch finds none here"):
            train.choose_device("cuda")
    with pytest.raises(InputError, match="fp16 needs an NVIDIA GPU"):
        train.choose_precision("fp16", CPU)
    assert train.choose_precision("fp32", CPU) == "fp32"
    assert train.choose_precision("auto", CPU) == ("bf16" if train.has_bf16(CPU) else "fp32")
