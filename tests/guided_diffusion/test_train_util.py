"""The training loop: published figures, what it writes and when, resuming, precision, and what stops it."""

import itertools
import math
import os
import signal

import numpy as np
import pytest
import torch

from guided_diffusion import checkpoint_util, logger
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import create_model_and_diffusion
from guided_diffusion.train_util import TrainLoop, TrainObserver
from tests.helpers import BASE, csv_rows, fill_, golden, relative_error, rnd
from tests.training.small import FLAGS, endless, network_and_diffusion, settings


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    logger.configure(dir=str(tmp_path), format_strs=["csv"])
    yield
    logger.reset()


def make(seed: int = 0, data=None, flags=None, **other) -> TrainLoop:
    torch.manual_seed(seed)
    np.random.seed(seed)
    model, diffusion = network_and_diffusion(**(flags or {}))
    return TrainLoop(model=model, diffusion=diffusion, data=data or endless(4), **settings(**other))


def train(**other) -> TrainLoop:
    loop = make(**{"keep_checkpoints": 1, **other})
    loop.run_loop()
    return loop


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def watch(**methods) -> TrainObserver:
    observer = TrainObserver()
    vars(observer).update(methods)
    return observer


def scaler(exponent: int) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**exponent, growth_interval=1)


def gradient(loop: TrainLoop) -> torch.Tensor:
    loop.run_step(rnd(1, 4, 3, 8, 8), {})
    return torch.cat([p.grad.flatten() for p in loop.params])


def test_four_updates_give_the_published_weights(tmp_path):
    model, diffusion = create_model_and_diffusion(**{**BASE, "timestep_respacing": ""})
    generator = torch.Generator().manual_seed(500)
    data = ((torch.randn(4, 3, 64, 64, generator=generator).clamp(-1, 1), {}) for _ in itertools.count())
    np.random.seed(3)
    torch.manual_seed(3)
    sampler = create_named_schedule_sampler("loss-second-moment", diffusion)  # uniform for a long time
    arguments = settings(microbatch=2, ema_rate="0.9,0.5", weight_decay=0.05, lr_anneal_steps=4)
    TrainLoop(model=fill_(model), diffusion=diffusion, data=data, schedule_sampler=sampler, **arguments).run_loop()
    expected = golden("training")
    keys = [key for key in expected if key.startswith("loss-second-moment/")]
    assert len(keys) == 12
    for key in keys:
        _, file, parameter = key.split("/")
        got = checkpoint_util.load_state_dict(tmp_path / file)[parameter].flatten()[:16]
        assert relative_error(got, expected[key]) < 1e-5, key  # the golden figures' own tolerance


def test_gradients_are_weighted_and_summed_over_microbatches_and_what_the_sampler_learns_is_not():
    t, weights = torch.tensor([5, 70, 11, 40]), torch.tensor([3.0, 0.5, 2.0, 0.25])
    loop, told = make(microbatch=2), []
    loop.schedule_sampler = sampler = create_named_schedule_sampler("loss-second-moment", loop.diffusion)
    parts = iter(zip(t.split(2), weights.split(2), strict=True))
    sampler.sample = lambda batch_size, device: next(parts)
    sampler.update_with_local_losses = lambda *t_and_losses: told.append(t_and_losses)
    loop.diffusion.training_losses = lambda net, x, t, model_kwargs: {"loss": net(x, t).square().mean((1, 2, 3))}
    batch = rnd(1, 4, 3, 8, 8)
    losses = loop.diffusion.training_losses(loop.model, batch, t, {})["loss"]
    expected = torch.autograd.grad((losses * weights).view(2, 2).mean(1).sum(), loop.params)
    loop.forward_backward(batch, {})
    # float32 sums in another order
    torch.testing.assert_close([p.grad for p in loop.params], list(expected), rtol=1e-3, atol=1e-5)
    assert [of.tolist() for of, _ in told] == [[5, 70], [11, 40]]  # after each microbatch
    torch.testing.assert_close(torch.cat([alone for _, alone in told]), losses.detach(), rtol=1e-5, atol=0)


def test_offset_noise_shifts_each_channel_and_clipping_bounds_the_gradient():
    loop = make(offset_noise=0.5)
    seen = []

    def losses(network, x, t, model_kwargs, noise):
        seen.append(noise)
        return {"loss": loop.params[0].sum() * torch.ones(len(x))}

    loop.diffusion.training_losses = losses
    for _ in range(100):
        loop.forward_backward(rnd(1, 4, 3, 8, 8), {})
    noise = torch.cat(seen)
    assert noise.shape[1:] == (3, 8, 8)
    # the mean of 64 values has variance 1/64, the shift 1/4; 1200 of them tell it to 4 %, five times that is allowed
    assert float(noise.mean((2, 3)).var()) == pytest.approx(1 / 4 + 1 / 64, rel=0.2)
    assert float(noise.var((2, 3)).mean()) == pytest.approx(1, rel=0.05)
    assert float(gradient(make(grad_clip=0.01)).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("anneal", "expected"), [(0, [0.25, 0.5, 0.75, 1, 1]), (8, [0.25, 0.5, 0.75 * 7 / 8, 0.75, 0.625])]
)
def test_the_rate_warms_up_and_a_resumed_training_goes_on_with_it(tmp_path, anneal, expected):
    rates = []
    observer = watch(on_update=lambda loop: rates.append(loop.opt.param_groups[0]["lr"]))
    arguments = {"lr": 1.0, "lr_warmup_steps": 4, "lr_anneal_steps": anneal, "observer": observer}
    used = make(**arguments).opt.param_groups[0]["lr"]
    for updates in (2, 5):  # stopped and resumed between the two
        train(max_steps=updates, output_path=str(tmp_path), **arguments)
    assert [used, *rates[:4]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "growth"), [({"fp16_scale_growth": 0.5}, 0.5), ({"fp16_scale_growth": 0.0}, 0), ({}, 1e-3)]
)
def test_the_loss_scale_grows_with_each_update_and_an_overflow_takes_one_from_its_exponent(settings, growth):
    loop = make(precision="fp16", flags={"num_channels": 32}, **settings)  # small: float16 is slow on a CPU
    loop.diffusion.training_losses = lambda network, x, t, model_kwargs: {  # small: its gradients stay finite
        "loss": 1e-6 * network(x, t).mean((1, 2, 3))
    }
    exponents = [math.log2(loop.scaler.get_scale())]
    for factor in (1.0, 1.0, float("nan"), 1.0):
        before = [p.detach().clone() for p in (*loop.params, *loop.ema[0.9].parameters())]
        assert loop.run_step(factor * rnd(1, 4, 3, 8, 8), {}) == (factor == 1)
        exponents.append(math.log2(loop.scaler.get_scale()))
        after = (*loop.params, *loop.ema[0.9].parameters())
        same = [torch.equal(p, old) for p, old in zip(after, before, strict=True)]
        assert all(same) == (factor != 1)
    changes = np.cumsum([growth, growth, -1, growth])
    assert exponents == pytest.approx([20, *(20 + changes)], abs=1e-6)  # float32 has 24 bits


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.05)])
def test_lower_precision_has_nearly_the_gradient_of_float32(precision, tolerance):
    """Embeddings and head compute in float32, the blocks do not."""
    exact, loop, types = gradient(make()), make(precision=precision), {}
    if precision == "fp16":  # the first scale would overflow, be halved and tried again with the next batch
        loop.scaler = scaler(8)
    for name, module in loop.model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.register_forward_hook(lambda _, args, output, name=name: types.update({name: output.dtype}))
    # a convolution rounds to 11 (fp16) or 8 (bf16) bits; a dozen of them stand in a row
    assert 0 < (exact - gradient(loop)).norm() / exact.norm() < tolerance
    in_float32 = {name for name, dtype in types.items() if dtype == torch.float32}
    assert in_float32 == {name for name in types if name.startswith(("time_embed.", "out.")) or "emb_layers" in name}
    assert {types[name] for name in types if name not in in_float32} == {loop.dtype}


def test_half_precision_begins_stops_at_overflows_without_end_and_falls_back_on_a_cpu(capsys):
    """A head in half precision overflows: its gradient sums 2^20 times the loss's over all pixels."""
    torch.manual_seed(0)
    model, diffusion = create_model_and_diffusion(**FLAGS)  # as it is at first, with a head of zeros
    loop = TrainLoop(model=model, diffusion=diffusion, data=endless(1), precision="fp16", **settings(batch_size=1))
    assert [loop.run_step(rnd(seed, 1, 3, 8, 8), {}) for seed in (1, 2)] == [True, True]
    capsys.readouterr()
    for use_fp16 in (True, False):
        assert make(use_fp16=use_fp16).dtype == torch.float32
        assert capsys.readouterr().out.count("fp16") == use_fp16
    loop = make(precision="fp16")
    loop.scaler = scaler(-12)
    loop.params[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0: the gradients are not finite"):
        gradient(loop)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 4, "keep_checkpoints": 0}, [0, 2, 4]),
        ({"max_steps": 3}, [2]),  # update 2 is the third, and has its set: it is not saved twice
        ({"max_steps": 9, "ema_rate": 0.9}, [2]),  # with the variable
    ],
)
def test_sets_and_their_numbers(tmp_path, monkeypatch, settings, steps):
    if settings["max_steps"] == 9:
        monkeypatch.setenv("DIFFUSION_TRAINING_TEST", "1")  # stops after a later save than the first
    foreign = ["ddpm-celeba.pt", "model000000.pt.bak", "model000007.pt", "classifier.pth"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    assert train(save_interval=2, **settings).step == steps[-1] + (steps[-1] < 4)
    own = [f"{name}{k:06d}.pt" for name in ("ema_0.9_", "model", "opt") for k in steps]
    assert names(tmp_path) == sorted([*own, "ddpm-celeba.pt", "model000007.pt"])  # old sets go, foreign files stay
    assert all((tmp_path / name).read_text() == "mine" for name in foreign)


def test_what_is_logged(tmp_path):
    train(max_steps=4, log_interval=2, use_fp16=False)
    rows = csv_rows(tmp_path / "progress.csv")
    assert [row["step"] for row in rows] == ["0", "2"]
    assert [row["samples"] for row in rows] == ["4", "12"]
    assert {"loss", "mse", "vb", "grad_norm", "param_norm", "lr", "images_per_second"} <= set(rows[0])
    row = {key: float(value) for key, value in rows[1].items() if value}
    assert row["loss"] == pytest.approx(row["mse"] + row["vb"])
    logged = {}  # the norms of the weights and the loss's scale are those that an update started from
    observer = watch(on_log=lambda loop, values: logged.update(values))
    loop = make(precision="fp16", max_steps=1, lr=1.0, observer=observer)
    loop.scaler = scaler(9)
    before = torch.cat([p.detach().flatten() for p in loop.params]).norm()
    loop.run_loop()
    assert logged["param_norm"] == pytest.approx(float(before), rel=1e-4)  # float32 sums in another order
    assert logged["lg_loss_scale"] == 9
    # each term by quartile of the timestep: of ten of a process of a hundred they are 0-2, 3-4, 5-7 and 8-9
    loop = make(flags={"timestep_respacing": "10"}, batch_size=10, observer=observer)
    loop.schedule_sampler.sample = lambda batch_size, device: (torch.arange(10), torch.ones(10))
    loop.diffusion.training_losses = lambda network, x, t, model_kwargs: {
        "loss": t.float() ** 2 + 0 * network(x, t).mean((1, 2, 3)),
        "mse": 100.0 + t,
    }
    loop.run_step(rnd(1, 10, 3, 8, 8), {})
    loop.log(0)
    expected = {
        **{"loss": 28.5, "loss_q0": 5 / 3, "loss_q1": 12.5, "loss_q2": 110 / 3, "loss_q3": 72.5},
        **{"mse": 104.5, "mse_q0": 101, "mse_q1": 103.5, "mse_q2": 106, "mse_q3": 108.5},
    }
    assert {key: logged[key] for key in expected} == pytest.approx(expected)


def test_resume_checkpoint_and_the_same_command_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(max_steps=2, output_path=str(first))
    resume = str(first / "model000002.pt")
    loop = make(resume_checkpoint=resume, ema_rate="0.7", weight_decay=0.25)
    assert loop.opt.param_groups[0]["weight_decay"] == 0.25
    assert loop.updates == loop.resume_step == 2 and loop.opt.state_dict()["state"][0]["step"] == 2
    assert all(
        torch.equal(e, p) for e, p in zip(loop.ema[0.7].parameters(), loop.params, strict=True)
    )  # none was there
    train(resume_checkpoint=resume, max_steps=4, output_path=str(second))
    assert names(second) == ["ema_0.9_000004.pt", "model000004.pt", "opt000004.pt"]
    assert "model000002.pt" in names(first)  # what it started from is not this run's to remove
    assert make(resume_checkpoint=resume, output_path=str(second)).updates == 4
    plain = tmp_path / "model000123.pt"  # a published set, without notes
    torch.save(loop.model.state_dict(), plain)
    torch.save(loop.opt.state_dict(), tmp_path / "opt000123.pt")
    published = make(resume_checkpoint=str(plain))
    assert published.resume_step == 123 and int(published.opt.state_dict()["state"][0]["step"]) == 2
    other = str(first / "ema_0.9_000002.pt")
    assert make(resume_checkpoint=other, output_path=str(second)).resume_step == 0  # another start, without a number


def test_after_resume_checkpoint_the_updates_of_this_process_decide_when_to_save(tmp_path):
    """Numbers go on from the file's; the interval starts anew, so that a set follows the first update."""
    start, out = tmp_path / "model000002.pt", tmp_path / "out"
    torch.save(network_and_diffusion()[0].state_dict(), start)
    train(resume_checkpoint=str(start), output_path=str(out), save_interval=3, max_steps=7, keep_checkpoints=0)
    # its updates are number 2 to 6: a set after its first, its fourth, and with all seven at the end
    assert sorted(path.name for path in out.glob("model*.pt")) == [f"model{k:06d}.pt" for k in (2, 5, 7)]
    of_this_process = [checkpoint_util.load(out / f"opt{k:06d}.pt")["state"][0]["step"] for k in (2, 5, 7)]
    assert of_this_process == [1, 4, 5]


def test_an_optimizer_file_of_other_content_is_named(tmp_path):
    """What else it may hold instead: tests/faults/test_hostile_files.py."""
    train(max_steps=2)
    other = {"training": {"resume_checkpoint": "", "ranks": [{"random": {"python": 3}}]}}
    torch.save(checkpoint_util.load(tmp_path / "opt000002.pt") | other, tmp_path / "opt000002.pt")
    with pytest.raises(ValueError, match=r"opt000002\.pt: does not hold what this training saves"):
        make(output_path=str(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_stops(number, tmp_path):
    handler = signal.getsignal(number)
    loop = train(observer=watch(on_update=lambda loop: loop.updates == 3 and os.kill(os.getpid(), number)))
    assert loop.updates == 3
    assert "model000003.pt" in names(tmp_path)
    assert signal.getsignal(number) == handler


def test_broken_weights_are_never_saved_and_the_last_good_set_stays(tmp_path):
    loop = make()
    loop.params[0].data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the weights are not finite"):
        loop.save(2)
    assert names(tmp_path) == []
    data = ((batch * float("nan") if k == 3 else batch, cond) for k, (batch, cond) in enumerate(endless(4)))
    with pytest.raises(FloatingPointError, match="step 3: the loss is not a finite number"):
        train(save_interval=2, data=data)
    assert names(tmp_path) == ["ema_0.9_000002.pt", "model000002.pt", "opt000002.pt"]
    saved = checkpoint_util.load_state_dict(tmp_path / "model000002.pt")
    assert all(value.isfinite().all() for value in saved.values())
