"""celeba-train-diffusion.py, sample-diffusion.py and image-nll.py; a script in the manner of guided-diffusion's own."""

import importlib
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.datasets import open_dataset
from dime.core.errors import InputError
from dime.core.training.script import LabelledImages, open_part
from guided_diffusion import checkpoint_util, dist_util
from guided_diffusion.script_util import model_and_diffusion_defaults
from tests.training.kill_and_resume import run_trials
from tests.training.small import SMALL_UNET, launched, make_folders_of_classes
from tests.worlds import Run, as_arguments, refusal, run_script, succeeded

TRAIN, SAMPLE, NLL = "celeba-train-diffusion", "sample-diffusion", "image-nll"


def train(data, out, **flags) -> Run:
    common = {"data_dir": data, "output_path": out, "batch_size": 4, "num_workers": 0, "samples": 4, "sample_steps": 3}
    return run_script(TRAIN, **{**SMALL_UNET, **common, "max_steps": 2, **flags})


def test_defaults_are_the_published_ones(monkeypatch):
    monkeypatch.setattr(sys, "argv", [TRAIN])
    flags = vars(importlib.import_module(TRAIN).parse_args())
    expected = model_and_diffusion_defaults()
    expected |= {"data_dir": "", "schedule_sampler": "uniform", "lr": 1e-4, "weight_decay": 0.0, "lr_anneal_steps": 0}
    expected |= {"batch_size": 1, "microbatch": -1, "ema_rate": "0.9999", "log_interval": 10, "save_interval": 10000}
    expected |= {"resume_checkpoint": "", "fp16_scale_growth": 1e-3, "output_path": "", "gpus": ""}
    # what the published script does not have changes nothing of its training
    expected |= {"lr_warmup_steps": 0, "max_steps": 0, "precision": None, "grad_clip": 0.0, "offset_noise": 0.0}
    expected |= {"random_crop": False, "random_flip": True, "image_channels": 3, "dataset": "CelebA"}
    assert {name: flags[name] for name in expected} == expected


def test_what_a_training_leaves_and_the_same_command_again(data, tmp_path):
    out = tmp_path / "out"
    output = succeeded(train(data, out, max_steps=3, save_interval=10, log_interval=1)).out
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"model000003.pt", "ema_0.9999_000003.pt", "opt000003.pt", "progress.csv", "log.txt"} <= files
    assert {"samples/000000.png", "samples/000003.png"} <= files
    assert re.search(r"update 3: loss \d.*images/s.*left", output) and "3 updates done; finished" in output
    assert "3 updates done, checkpoints in" in succeeded(train(data, out, max_steps=4)).out
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    succeeded(train(data, out, max_steps=4))  # it is finished
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.pt")} == before
    assert set(before) == {"model000004.pt", "ema_0.9999_000004.pt", "opt000004.pt"}


def test_the_grid_grows_from_fixed_noise_and_disturbs_nothing(data, tmp_path):
    for name, samples in (("a", 4), ("b", 4), ("c", 0)):
        succeeded(train(data, tmp_path / name, samples=samples))
    grids = [np.array(Image.open(tmp_path / name / "samples" / "000000.png")) for name in "ab"]
    assert (grids[0] == grids[1]).all()
    with_grid, without = (checkpoint_util.load_state_dict(tmp_path / name / "model000002.pt") for name in "ac")
    assert all(torch.equal(with_grid[key], without[key]) for key in without)


def test_a_killed_training_ends_in_the_same_bytes():
    assert run_trials(trials=1, seed=1, updates=12) == ["same"]


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 4, 8, 12, 16, 20, 24, 28]), (3, [3, 7, 11, 15, 19, 23, 27])])
def test_a_process_takes_every_fourth_row_of_four(data, monkeypatch, rank, expected):
    monkeypatch.setattr(dist_util, "rank", lambda: rank)
    monkeypatch.setattr(dist_util, "world_size", lambda: 4)
    source = open_part("CelebA", str(data), "train", 16)
    share = LabelledImages(source, [31, 2])
    assert len(share) == len(expected)
    for (image, condition), row in zip((share[k] for k in range(len(share))), expected, strict=True):
        assert torch.equal(image, source.load(row))
        assert torch.equal(condition["y"], source.conditions(row)[[31, 2]])
    assert LabelledImages(source)[0][1] == {}


def test_a_conditional_model_is_trained_sampled_and_measured(data, tmp_path):
    out = tmp_path / "out"
    succeeded(train(data, out, class_cond=True))
    model = {**SMALL_UNET, "class_cond": True, "model_path": out / "ema_0.9999_000002.pt", "timestep_respacing": "4"}
    sampling = {"num_samples": 3, "batch_size": 2, "output_path": tmp_path}
    succeeded(run_script(SAMPLE, **model, **sampling, attributes="Smiling,Young"))
    with np.load(tmp_path / "samples_3x16x16x3.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 16, 16, 3) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].shape == (3, 40) and np.flatnonzero(arrays["arr_1"][0]).tolist() == [31, 39]
    succeeded(run_script(SAMPLE, **model, **sampling, data_dir=data, use_ddim=True))
    succeeded(run_script(NLL, **model, data_dir=data, num_samples=4, batch_size=2, output_path=tmp_path))
    refusal(run_script(SAMPLE, **model, **sampling))  # what should it draw?


def test_grey_images_of_any_folder_with_classes(tmp_path):
    folder, out = make_folders_of_classes(tmp_path / "data"), tmp_path / "out"
    data = {"data_dir": folder, "dataset": "folder"}
    succeeded(train(folder, out, **data, image_channels=1, class_cond=True))
    assert checkpoint_util.stored_config(checkpoint_util.load_state_dict(out / "model000002.pt"))["num_classes"] == 2
    assert "trained with --image_channels 1, not 3" in refusal(train(folder, out, **data, class_cond=True))
    model = {"model_path": out / "ema_0.9999_000002.pt", "timestep_respacing": "3", "output_path": tmp_path}
    succeeded(run_script(SAMPLE, **model, num_samples=5, batch_size=3))
    with np.load(tmp_path / "samples_5x16x16x1.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8 and set(arrays["arr_1"]) <= {0, 1}
    done = succeeded(run_script(NLL, **model, data_dir=folder, num_samples=8, batch_size=4))
    assert "(8 images)" in done.out


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    succeeded(train(world.data, out))
    return out / "ema_0.9999_000002.pt"


def test_samples_follow_the_seed_and_ddim_differs(trained, tmp_path):
    images = {}
    for name, flags in {"first": {}, "again": {}, "other": {"seed": 2}, "ddim": {"use_ddim": 1}}.items():
        flags = {"seed": 1, "num_samples": 3, "batch_size": 3, "timestep_respacing": "4"} | flags
        succeeded(run_script(SAMPLE, **SMALL_UNET, model_path=trained, output_path=tmp_path / name, **flags))
        with np.load(tmp_path / name / "samples_3x16x16x3.npz") as arrays:
            images[name] = arrays["arr_0"]
        assert Image.open(tmp_path / name / "samples_3x16x16x3.png").mode == "RGB"
    assert (images["first"] == images["again"]).all()
    assert all((images["first"] != images[name]).any() for name in ("other", "ddim"))


def test_likelihood_of_celeba_and_of_any_folder(trained, data, tmp_path):
    for folder in (data, data / "img_align_celeba"):
        flags = {"data_dir": folder, "num_samples": 6, "batch_size": 3, "timestep_respacing": "5"}
        done = succeeded(run_script(NLL, **SMALL_UNET, model_path=trained, output_path=tmp_path, **flags))
        last = done.out.strip().splitlines()[-1]
        found = re.fullmatch(r"(.+) bits per dimension = L_T (.+) \+ L_t (.+) \+ L_0 (.+) \(6 images\)", last)
        total, *parts = map(float, found.groups())
        assert total == pytest.approx(sum(parts), rel=2e-3)  # the parts are printed to four digits
        with np.load(tmp_path / "vb_terms.npz") as arrays:
            assert arrays["arr_0"].shape == (5,)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_dir": "/nowhere"}, "/nowhere: no such folder"),
        ({"gpus": "0,x"}, "gpus '0,x': expected GPU indices"),
        ({"resume_checkpoint": "/nowhere/model000123.pt"}, "/nowhere/model000123.pt: no such checkpoint"),
        ({"ema_rate": "0.9,high"}, "ema_rate '0.9,high': expected numbers from 0 to 1"),
        ({"num_channels": 33}, "33"),
        ({"output_path": f"{__file__}/out"}, __file__),  # cannot be written
    ],
)
def test_bad_flags(data, tmp_path, flags, message):
    assert message in refusal(train(data, **{"out": tmp_path / "out"} | flags))


def test_a_checkpoint_of_another_network(data, trained, tmp_path):
    refused = refusal(train(data, trained.parent, num_heads=2))  # the same shapes
    assert "trained with --num_heads 4, not 2" in refused
    plain = tmp_path / "model000007.pt"  # without a configuration
    torch.save(dict(torch.load(trained, weights_only=True)), plain)
    line = refusal(train(data, tmp_path / "out", resume_checkpoint=plain, num_channels=64))
    assert "another network than the flags describe" in line


def test_a_damaged_image_does_not_end_a_training(tmp_path, capsys):
    """The next one stands in for it, which is said once; where many are damaged, that is an error."""
    for number in range(4):
        Image.new("L", (16, 16), 60 * number).save(tmp_path / f"{number}.jpg")
    path = tmp_path / "1.jpg"
    path.write_bytes(path.read_bytes()[:-4])
    images = LabelledImages(open_dataset("folder", str(tmp_path), 16))
    for _ in range(2):
        torch.testing.assert_close(images[1][0], images[2][0])
    assert capsys.readouterr().out.count("1.jpg: not a readable image") == 1
    (tmp_path / "2.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.jpg: not a readable image"):
        images[2]


FOREIGN = """
import argparse, os
import numpy as np, torch as th, torch.distributed as dist
from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    NUM_CLASSES, add_dict_to_argparser, args_to_dict, create_model_and_diffusion, model_and_diffusion_defaults)
from guided_diffusion.train_util import TrainLoop

defaults = dict(data_dir="", schedule_sampler="uniform", lr=1e-4, weight_decay=0.0, lr_anneal_steps=0, batch_size=1,
                microbatch=-1, ema_rate="0.9999", log_interval=10, save_interval=10000, resume_checkpoint="",
                fp16_scale_growth=1e-3, clip_denoised=True, num_samples=4, use_ddim=False)
defaults.update(model_and_diffusion_defaults())
parser = argparse.ArgumentParser()
add_dict_to_argparser(parser, defaults)
args = parser.parse_args()

dist_util.setup_dist()
logger.configure()
logger.log("creating model and diffusion...")
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
model.to(dist_util.dev())
schedule_sampler = create_named_schedule_sampler(args.schedule_sampler, diffusion)
data = load_data(data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size,
                 class_cond=args.class_cond)
TrainLoop(model=model, diffusion=diffusion, data=data, batch_size=args.batch_size, microbatch=args.microbatch,
          lr=args.lr, ema_rate=args.ema_rate, log_interval=args.log_interval, save_interval=args.save_interval,
          resume_checkpoint=args.resume_checkpoint, use_fp16=args.use_fp16, fp16_scale_growth=args.fp16_scale_growth,
          schedule_sampler=schedule_sampler, weight_decay=args.weight_decay,
          lr_anneal_steps=args.lr_anneal_steps).run_loop()

args.timestep_respacing = "4"
model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
path = os.path.join(logger.get_dir(), "ema_0.9999_000002.pt")
model.load_state_dict(dist_util.load_state_dict(path, map_location="cpu"))
model.to(dist_util.dev())
if args.use_fp16:
    model.convert_to_fp16()
model.eval()
images = []
while len(images) * args.batch_size < args.num_samples:
    y = th.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
    sample_fn = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
    sample = sample_fn(model, (args.batch_size, 3, args.image_size, args.image_size),
                       clip_denoised=args.clip_denoised, model_kwargs={"y": y})
    sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
    gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sample)
    images.extend([sample.cpu().numpy() for sample in gathered])
if dist.get_rank() == 0:
    np.savez(os.path.join(logger.get_dir(), "samples.npz"), np.concatenate(images, axis=0)[: args.num_samples])
batch, model_kwargs = next(load_data(data_dir=args.data_dir, batch_size=args.batch_size, image_size=args.image_size,
                                     class_cond=args.class_cond, deterministic=True))
batch = batch.to(dist_util.dev())
model_kwargs = {k: v.to(dist_util.dev()) for k, v in model_kwargs.items()}
terms = diffusion.calc_bpd_loop(model, batch, clip_denoised=args.clip_denoised, model_kwargs=model_kwargs)
total = terms["total_bpd"].mean() / dist.get_world_size()
dist.all_reduce(total)
logger.log(f"bpd={total.item()} of {terms['vb'].shape}")
dist.barrier()
"""


def test_train_sample_and_measure(tmp_path):
    make_folders_of_classes(tmp_path)
    (tmp_path / "script.py").write_text(FOREIGN)
    flags = SMALL_UNET | {"class_cond": True, "batch_size": 2, "lr_anneal_steps": 2, "data_dir": tmp_path / "train"}
    command = [sys.executable, f"{tmp_path}/script.py", *as_arguments(flags)]
    output = launched(*command, OPENAI_LOGDIR=f"{tmp_path}/logs").out
    assert "creating model and diffusion..." in output and "| step " in output
    assert re.search(r"bpd=\d.* of torch.Size\(\[2, 4\]\)", output)
    with np.load(tmp_path / "logs" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 16, 16, 3)
