"""A script in the manner of guided-diffusion's own, written against its names alone, run with this library."""

import re
import sys

import numpy as np

from tests.training.small import SMALL_UNET, make_folders_of_classes, run
from tests.worlds import as_arguments

SCRIPT = """
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
    (tmp_path / "script.py").write_text(SCRIPT)
    flags = SMALL_UNET | {"class_cond": True, "batch_size": 2, "lr_anneal_steps": 2, "data_dir": tmp_path / "train"}
    output = run([sys.executable, f"{tmp_path}/script.py", *as_arguments(flags)], OPENAI_LOGDIR=f"{tmp_path}/logs")
    assert "creating model and diffusion..." in output and "| step " in output
    assert re.search(r"bpd=\d.* of torch.Size\(\[2, 4\]\)", output)
    with np.load(tmp_path / "logs" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (4, 16, 16, 3)
