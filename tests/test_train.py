import copy
import dataclasses
import io
import math
import re
import time

import numpy
import pytest
import torch
from conftest import ROOT, TINY, TINY_ARGS, make_folder, run_program
from sklearn.metrics import accuracy_score, log_loss
from torch.utils.data import DataLoader, TensorDataset

import data
import run
import train
import vit
from lab import machine, stages, training
from lab.checkpoint import Checkpoint, Start
from lab.errors import InputError, is_out_of_memory
from lab.findings import Findings
from lab.machine import choose_device, choose_precision
from lab.recipe import load_recipe, parse_setting
from lab.record import NamedRecipe
from lab.steps import BatchedMuon, EagerAdamW, faster
from report import answers

CPU = torch.device("cpu")


def tiny(**changes):
    return load_recipe("default", [*map(parse_setting, TINY), *changes.items()])


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """The training and test Split of three classes of twenty images each."""
    home = tmp_path_factory.mktemp("train")
    make_folder(home / "d", {"a": 20, "b": 20, "c": 20})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only loses by more, most of all on a busy machine
    yield data.load_data(home / "d", home / "split", tiny())[:2]
    torch.set_num_threads(threads)


def some(split, rows):
    """The Split of some rows of another."""
    files, digests = ([texts[i] for i in rows] for texts in (split.files, split.digests))
    return data.Split(
        split.pixels, split.rows[list(rows)], split.labels[list(rows)], split.classes, files, digests
    )


def prepare(splits, recipe, precision="fp32", model=None):
    """The training.Setup of a recipe on the CPU."""
    return training.prepare(*splits, recipe, CPU, precision, model=model)


def trained(splits, recipe, precision="fp32"):
    """(training.Setup, epochs, lines of the log) of a training on the CPU."""
    setup, log = prepare(splits, recipe, precision), io.StringIO()
    rows = list(training.epochs(setup, recipe, log=log))
    return setup, rows, log.getvalue().splitlines()


def same_weights(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_the_model_learns(splits):
    _, rows, _ = trained(splits, tiny(epochs=30))
    assert rows[-1].train_loss < 0.7 * rows[0].train_loss
    assert rows[-1].correct >= 0.8 * len(splits[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_weights_bit_for_bit(splits, precision):
    models = [trained(splits, tiny(dropout=0.1, epochs=2, seed=s), precision)[0].model for s in (42, 42, 1)]
    assert same_weights(models[0], models[1])
    assert not torch.equal(models[0].cls_token, models[2].cls_token)


def test_log_lines_are_the_assignments(splits):
    _, rows, lines = trained(splits, tiny(epochs=2))
    assert lines[0] == "Epoch: 1"
    assert re.fullmatch(r"\[    0/42 \(  0 %\)\] Loss: \d\.\d{4}", lines[1])
    assert re.fullmatch(r"\[    8/42 \( 19 %\)\] Loss: \d\.\d{4}", lines[2])
    _, scored = [line for line in lines if line.startswith("Average")]
    assert re.fullmatch(
        rf"Average test loss: {rows[-1].test_loss:.4f} Accuracy: \d+/18 \(\d+\.\d\d%\)", scored
    )


def test_the_templates_own_calls_train_with_plain_pytorch(capsys):
    """A DataLoader over a TensorDataset and one Adam, four arguments and three."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 32, 32) * 0.3 + labels.reshape(-1, 1, 1, 1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=10, shuffle=True)
    model = train.make_model(tiny(), 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, test_losses = [], []
    for _ in range(3):
        train.train_epoch(model, optimizer, loader, losses)
        train.evaluate(model, loader, test_losses)
    assert len(losses) == 18 and len(test_losses) == 3
    assert test_losses[-1] < 0.5 * losses[0] and test_losses[-1] < test_losses[0]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[   50/60 \( 83 %\)\] Loss: \d\.\d{4}", lines[5])
    told = re.fullmatch(r"Average test loss: (\d\.\d{4}) Accuracy: (\d+)/60 \((\d+\.\d\d)%\)", lines[-1])
    assert float(told[1]) == pytest.approx(test_losses[-1], abs=1e-4)
    assert float(told[3]) == pytest.approx(100 * int(told[2]) / 60, abs=0.01)


def test_views_are_those_that_were_trained_with():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)

    def views(**changes):
        recipe = tiny(patch_size=2, **changes)  # a quarter of that is less than a pixel
        found = list(train.views_of(image, recipe))
        assert len(found) == answers._views(recipe)
        return [tuple(v.flatten().tolist()) for v in found]

    turned = [torch.rot90(x, k, (-2, -1)) for k in range(4) for x in (image, image.mT)]
    whole = views(transpose=True)
    assert sorted(whole) == sorted(tuple(x.flatten().tolist()) for x in turned)
    assert len(set(views(transpose=False))) == 4
    one = [tuple(image.flatten().tolist())]
    assert views(flip=False, transpose=False) == one
    assert views(vertical_flip=False, transpose=False) == [*one, tuple(image.flip(-1).flatten().tolist())]
    assert whole[0] == views(transpose=False)[0] == one[0]


def test_views_are_shifted_to_four_corners_with_mirrored_edges():
    picture = torch.rand(40, 40)
    recipe = tiny(image_size=40, patch_size=4, flip=False, transpose=False, crop=0.06)
    views = list(train.views_of(picture[None, None], recipe))
    assert len(views) == answers._views(recipe) == 4
    mirrored = numpy.pad(picture.numpy(), 1, mode="reflect")  # a quarter of a patch
    for view, (y, x) in zip(views, ((0, 0), (0, 2), (2, 0), (2, 2))):
        numpy.testing.assert_array_equal(view[0, 0], mirrored[y : y + 40, x : x + 40])
    turned = [*train.views_of(picture[None, None], dataclasses.replace(recipe, flip=True))]  # of two of them
    opposite = [view.flip(dims) for view in (views[0], views[3]) for dims in ((), (-1,), (-2,), (-1, -2))]
    assert len(turned) == 8
    assert all(torch.equal(*pair) for pair in zip(turned, opposite))
    assert len([*train.views_of(picture[None, None], dataclasses.replace(recipe, crop=0.0))]) == 1


def test_a_flipped_image_gets_the_same_prediction_from_all_flips(splits):
    setup, _, _ = trained(splits, tiny(epochs=1))
    model, loader = setup.model, setup.test_loader
    batches = [(batch.flip(-1), labels) for batch, labels in loader]
    upright, _ = train.predict(model, loader, tiny(crop=0.0))
    flipped, _ = train.predict(model, batches, tiny(crop=0.0))
    torch.testing.assert_close(flipped, upright, atol=1e-4, rtol=0)
    one = train.predict(model, loader)[0]
    assert not torch.allclose(train.predict(model, batches)[0], one, atol=1e-3)
    assert torch.equal(train.predict(model, loader, tiny(test_views=False))[0], one)
    turned = [(batch.flip(-1).flip(-2), labels) for batch, labels in loader]  # upside down, also with shifts
    torch.testing.assert_close(*(train.predict(model, some, tiny())[0] for some in (loader, turned)))


def test_the_last_epoch_is_the_score_of_the_trained_weights_in_fp32_and_scikit_learn_agrees(splits):
    setup, rows, _ = trained(splits, tiny(epochs=2), "bf16")
    losses, labels = [], splits[1].labels
    loss, correct, logits = train.evaluate(setup.model, setup.test_loader, losses, tiny())
    assert losses == [loss] == [rows[-1].test_loss] and correct == rows[-1].correct
    assert torch.equal(rows[-1].logits, logits) and torch.equal(training.score(setup, tiny()), logits)
    assert correct / len(labels) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert loss == pytest.approx(log_loss(labels, logits.double().softmax(-1)), abs=1e-5)


def test_the_test_split_changes_nothing_in_training(splits):
    whole, _, _ = trained(splits, tiny(epochs=2))
    other, _, _ = trained((splits[0], some(splits[1], [0, 7, 9])), tiny(epochs=2))
    assert same_weights(whole.model, other.model)


# Optimizers


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    recipe = tiny(epochs=10, warmup_epochs=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    (scheduler,) = train.make_schedulers([optimizer], recipe, steps_per_epoch=5)
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
        adamw, *muon = train.make_optimizers(model, recipe)
        assert len(muon) == bool(recipe.muon_learning_rate)
        decayed, free = adamw.param_groups
        groups = [decayed, *(group for optimizer in muon for group in optimizer.param_groups)]
        matrices = [p for group in groups for p in group["params"]]
        assert {p.ndim for p in matrices} == {2}
        assert {group["weight_decay"] for group in groups} == {0.05}
        assert free["weight_decay"] == 0
        assert len(matrices) + len(free["params"]) == len(list(model.parameters()))
        assert any(p is model.pos_embedding for p in free["params"])


def test_muon_turns_the_encoders_matrices_and_adamw_the_head():
    """One step of Muon from zero momentum moves a matrix by an orthogonal one, near enough."""
    recipe = tiny(weight_decay=0.0, warmup_epochs=0.0)
    model = train.make_model(recipe, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(16, 1, 32, 32)).square().sum().backward()
    for optimizer in train.make_optimizers(model, recipe):
        optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    step = moved["transformer.layers.0.1.fn.net.0.weight"]  # 64 x 32
    sizes = torch.linalg.svdvals(step) / (recipe.muon_learning_rate * math.sqrt(64 / 32))
    assert sizes.max() < 1.5
    assert (sizes > 0.5).sum() >= 30  # of 32; the smallest take more steps of its iteration than it makes
    # AdamW's first step is the learning rate, whatever the gradient.
    assert moved["mlp_head.1.weight"].abs().median() == pytest.approx(recipe.learning_rate, rel=0.01)
    assert moved["cls_token"].abs().median() == pytest.approx(recipe.learning_rate, rel=0.01)


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_gradients_are_clipped_to_the_norm(splits, clip_norm):
    """With plain gradient descent at rate 1 a step is as long as the true gradient, also one scaled up."""
    loader = data.BatchLoader(splits[0], tiny(batch_size=42), CPU, train=True)
    model = train.make_model(tiny(), 3)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    how = {"clip_norm": clip_norm, "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**10)}
    train.train_epoch(model, torch.optim.SGD(model.parameters(), lr=1.0), loader, [], **how)
    step = (torch.nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()
    assert step == pytest.approx(0.01, rel=1e-3) if clip_norm else step > 0.1


# Losses that are no numbers, and rates


def test_advice_names_lower_rates_than_the_recipes_whenever_the_loss_goes_astray(splits):
    recipe, said = tiny(epochs=6, learning_rate=2e-3, muon_learning_rate=0.03), []
    for good_epochs in (0, 5):  # in the warm-up, and where the cosine is nearly down to 0
        setup = prepare(splits, recipe)
        epochs = training.epochs(setup, recipe)
        for _ in range(good_epochs):
            next(epochs)
        torch.nn.init.constant_(setup.model.cls_token, math.nan)
        with pytest.raises(InputError, match="the training loss became nan: try ") as caught:
            next(epochs)
        said.append(str(caught.value))
        rates = dict(re.findall(r"--set (\w+)=(\S+?),? ", said[-1]))
        assert 0 < float(rates.pop("learning_rate")) < recipe.learning_rate
        assert 0 < float(rates.pop("muon_learning_rate")) < recipe.muon_learning_rate
        assert not rates and "\n" not in said[-1]
    assert said[0] == said[1]
    assert "muon" not in training.advice(tiny(muon_learning_rate=0.0))


@pytest.mark.parametrize("muon", [0.03, 0.0])
def test_the_history_has_both_optimizers_rates_apart(splits, muon):
    recipe = tiny(epochs=4, learning_rate=2e-3, muon_learning_rate=muon)
    _, epochs, _ = trained(splits, recipe)
    rows = [stages._row_of(epoch, len(splits[1]), 1.0) for epoch in epochs]
    shares = [1.0, 0.75, 0.25, 0.0]  # a cosine after one epoch of warm-up
    assert [row.learning_rate for row in rows] == pytest.approx([2e-3 * s for s in shares], abs=1e-9)
    assert [row.muon_learning_rate for row in rows] == pytest.approx([muon * s for s in shares], abs=1e-9)
    assert [row.epoch for row in rows] == [1, 2, 3, 4]
    assert rows[-1].test_accuracy == epochs[-1].correct / 18


# fp16, whose gradients are scaled up to stay above the smallest number


@pytest.mark.parametrize("muon", [0.0, 0.01])
def test_fp16_trains_with_scaled_gradients(splits, muon):
    recipe = tiny(epochs=12, muon_learning_rate=muon)
    setup, rows, _ = trained(splits, recipe, "fp16")
    assert setup.scaler.is_enabled() and setup.scaler.get_scale() >= 1
    assert len(setup.optimizers) == 1 + bool(muon)
    assert rows[-1].train_loss < 0.95 * rows[0].train_loss
    assert all(p.isfinite().all() for p in setup.model.parameters())


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("muon", [0.0, 0.01])
def test_a_step_whose_gradients_overflow_fp16_is_left_out(splits, muon, clip_norm):
    recipe = tiny(batch_size=42, muon_learning_rate=muon)
    model = train.make_model(recipe, 3)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    loader = data.BatchLoader(splits[0], recipe, CPU, train=True)
    how = {"scaler": scaler, "precision": torch.float16, "clip_norm": clip_norm}
    optimizers = train.make_optimizers(model, recipe)
    train.train_epoch(model, optimizers, loader, [], **how)
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    scaler.update(2.0**10)
    train.train_epoch(model, optimizers, loader, [], **how)
    assert scaler.get_scale() == 2.0**10
    assert not any(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_in_one_product_become_what_the_library_makes_of_each(nesterov):
    torch.manual_seed(0)
    shapes = [(48, 16), (16, 16), (32, 16), (16, 32), (48, 16), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in "ab")
    how = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    reference = torch.optim.Muon(theirs, **how)
    (batch,) = faster([torch.optim.Muon(ours, **how)])
    assert type(batch) is BatchedMuon
    for step in range(4):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        batch.step(), reference.step()
        if step == 1:  # each goes on from the other's state
            states = batch.state_dict(), reference.state_dict()
            reference.load_state_dict(states[0]), batch.load_state_dict(states[1])
    for one, other in zip(ours, theirs):
        assert not torch.equal(one, torch.ones_like(one))
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # of steps of 0.02, in bfloat16


def test_adamw_without_the_compiler_is_the_librarys_to_the_last_bit():
    torch.manual_seed(0)
    shapes = [(8, 4), (4,), (1, 3, 4)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in "ab")
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True)
    (eager,) = faster([torch.optim.AdamW(ours, lr=0.01, weight_decay=0.1, fused=True)])
    assert type(eager) is EagerAdamW and eager.defaults["fused"]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in (eager, reference)]
    for step in range(4):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        eager.step(), reference.step()
        schedulers[0].step(), schedulers[1].step()
        if step == 1:  # each goes on from the other's state
            states = copy.deepcopy(eager.state_dict()), copy.deepcopy(reference.state_dict())
            reference.load_state_dict(states[0]), eager.load_state_dict(states[1])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))
    assert not torch.equal(ours[0], torch.ones(8, 4))


def test_a_training_does_not_import_the_compiler():
    """Of 2 s and 150 MB. Where this fails, PyTorch has changed how it wraps an optimizer's methods."""
    program = """if True:
        import sys, torch
        from data import Split
        from lab.recipe import Recipe
        from lab.training import epochs, prepare
        recipe = Recipe(image_size=8, patch_size=4, dim=8, depth=1, mlp_dim=8, epochs=1, batch_size=4)
        rows = torch.arange(8)
        pixels = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
        split = Split(pixels, rows, rows % 2, ["a", "b"], [""] * 8, [""] * 8)
        setup = prepare(split, split, recipe, torch.device("cpu"), "fp32")
        print(len(list(epochs(setup, recipe))), "torch._dynamo" in sys.modules)
    """
    assert run_program("-c", program, cwd=ROOT).stdout.split() == ["1", "False"]


# Memory that runs out


def test_trial_steps_estimate_the_time_and_change_nothing_that_training_draws_from(splits, monkeypatch):
    recipe = tiny(dropout=0.1, mixup=0.4, epochs=12)
    setup, undisturbed = (prepare(splits, recipe) for _ in "ab")
    draw, clock = torch.random.get_rng_state(), 0.0

    def count(module, args):  # a step on the first image seen takes 5 s, each later one 0.5 s
        nonlocal clock
        clock += 0.5 if clock else 5.0

    setup.model.transformer.register_forward_pre_hook(count)
    with monkeypatch.context() as patch:
        patch.setattr(training.time, "perf_counter", lambda: clock)
        seconds = training.try_steps(setup, recipe)
    # Steps of 8 images: 42 training images and a third of the cost for 18 test images, 12 epochs.
    assert seconds == pytest.approx(0.5 / 8 * (42 + 18 / 3) * 12)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert not any(optimizer.state for optimizer in setup.optimizers)
    assert all(p.grad is None for p in setup.model.parameters())
    for one, other in zip(setup.model.parameters(), undisturbed.model.parameters()):
        assert torch.equal(one, other)
    for one, other in zip(setup.train_loader, undisturbed.train_loader):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(splits):
    setup = prepare(splits, tiny())

    def fail(module, args):
        raise RuntimeError("something else")

    setup.model.register_forward_pre_hook(fail)
    for use in (training.try_steps, training.score, lambda *args: list(training.epochs(*args))):
        with pytest.raises(RuntimeError, match="something else"):
            use(setup, tiny())


def test_errors_that_mean_too_little_memory_are_known():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
    )
    assert not is_out_of_memory(RuntimeError("expected scalar type Float"))


def test_the_command_says_in_one_line_that_the_memory_became_too_small(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(vit.ViT, "forward", fail)
    args = ["--student-id", "1", "--data", str(make_folder(tmp_path / "d", {"a": 10, "b": 10})), *TINY_ARGS]
    assert run.main([*args, "--set", "epochs=1", "--output-dir", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "memory became too small" in said and "make batch_size, dim or depth smaller" in said


def test_devices_and_precisions_that_are_not_there_are_refused():
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: PyTorch finds none here"):
            choose_device("cuda")
    with pytest.raises(InputError, match="fp16 needs an NVIDIA GPU"):
        choose_precision("fp16", CPU)
    assert choose_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize(("slow", "chosen"), [(torch.bfloat16, "fp32"), (torch.float32, "bf16")])
def test_a_cpu_computes_in_bf16_where_that_is_faster(monkeypatch, slow, chosen):
    multiply = torch.Tensor.__matmul__

    def on_such_a_cpu(self, other):
        time.sleep(0.01 * (self.dtype == slow))
        return multiply(self, other)

    monkeypatch.setattr(machine, "bf16_is_faster", machine.bf16_is_faster.__wrapped__)  # anew each time
    monkeypatch.setattr(torch.Tensor, "__matmul__", on_such_a_cpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision("auto", CPU) == chosen
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision("auto", CPU) == "fp32"


# Checkpoints

DAMAGES = {
    "zero-filled": lambda content: bytes(len(content)),
    "truncated": lambda content: content[: len(content) // 2],
    "flipped bit": lambda content: content[:90_000] + bytes([content[90_000] ^ 1]) + content[90_001:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_a_damaged_checkpoint_is_one_line(splits, tmp_path, damage):
    path, recipe = tmp_path / "checkpoint.pt", tiny()
    setup = prepare(splits, recipe)
    checkpoint = Checkpoint(path, Start(NamedRecipe("default", recipe), Findings(), "fp32", None))
    checkpoint.save(setup, 1.5)
    assert Checkpoint.load(path).start == checkpoint.start and Checkpoint.load(path).seconds == 1.5
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(
        InputError, match=r"go on from .*checkpoint\.pt \(.*\): run without --resume"
    ) as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)
