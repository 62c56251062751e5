"""DiME: counterfactual explanations of a classifier's decisions on CelebA.

Every image is noised half-way and denoised again while the classifier pulls it over its decision and two distances
hold it at the input; the smallest realistic change that flips the decision remains. Run it again with --merge_and_eval
True to join the summaries of chunks.
"""

from __future__ import annotations

import argparse
from pathlib import Path, PurePath

import torch

from core.checkpoints import load_classifier, load_perceptual, load_unet
from core.cli import Parser, boolean, integer, number, number_list, run, say, select_device
from core.datasets import ATTRIBUTES, DATASETS, open_dataset, select_ids
from core.errors import InputError
from core.explain import Explainer
from core.guidance import BinaryAttribute, Guidance
from core.job import Job
from core.methods import METHODS, Settings
from core.noise import NOISE_SOURCES
from core.results import FRAME_KINDS, IMAGE_FORMATS, ResultTree
from core.summary import Summary, merge_chunks
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_gaussian_diffusion,
    diffusion_defaults,
    model_and_diffusion_defaults,
)

EXIT_SOME_FAILED = 3
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> int:
    """Run one chunk, or merge the summaries of all of them."""
    args = parse_args()
    tree = ResultTree(Path(args.output_path), args.exp_name, args.image_format)
    if args.merge_and_eval:
        report(merge_chunks(tree, args.num_chunks), tree)
        return 0
    device = select_device(args.gpu)
    diffusion = build_diffusion(args)
    job = build_job(args, tree)
    explainer = build_explainer(args, diffusion, device)
    job.check()
    summary = job.run(explainer, device)
    report(summary, tree)
    return EXIT_SOME_FAILED if summary["failed"] else 0


def parse_args() -> argparse.Namespace:
    """The flags of the command line, each one checked as far as it can be alone."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_flags(parser.add_argument_group("data"))
    add_output_flags(parser.add_argument_group("output"))
    add_network_flags(parser.add_argument_group("networks and machine"))
    add_method_flags(parser.add_argument_group("method"))
    add_family_flags(parser.add_argument_group("methods that grew out of DiME"))
    diffusion_group = parser.add_argument_group("diffusion model (as it was trained)")
    add_dict_to_argparser(diffusion_group, model_and_diffusion_defaults())
    args = parser.parse_args()
    if args.chunk >= args.num_chunks:
        raise InputError(
            f"--chunk {args.chunk}: with --num_chunks {args.num_chunks} the last chunk is {args.num_chunks - 1}"
        )
    if PurePath(args.exp_name).is_absolute() or ".." in PurePath(args.exp_name).parts:
        raise InputError(f"--exp_name {args.exp_name}: must be a name below OUTPUT_PATH/Results, such as exp/name")
    return args


def add_data_flags(group) -> None:
    """What is explained."""
    add = group.add_argument
    add(
        "--data_dir",
        default="",
        help="folder in CelebA's layout, local or gs://, az://; '' is the current one",
    )
    add(
        "--dataset",
        default="CelebA",
        choices=DATASETS,
        help="CelebA's val partition, or the mini-val set of 1000",
    )
    add("--use_train", type=boolean, default=False, help="the train partition instead of val (CelebA only)")
    add(
        "--query_label",
        type=attribute,
        default=-1,
        help="attribute to explain, 0..39 or its name (31 is Smiling)",
    )
    add(
        "--target_label",
        type=integer(-1, 1),
        default=-1,
        help="keep only images that are to become this label (0 or 1); -1 keeps all",
    )
    add("--batch_size", type=integer(1), default=16, help="images explained together")
    add("--num_batches", type=integer(1), default=50, help="explain at most num_batches * batch_size images")
    add("--num_chunks", type=integer(1), default=1, help="split the images over this many jobs")
    add("--chunk", type=integer(0), default=0, help="which of the num_chunks parts this job does, from 0")


def add_output_flags(group) -> None:
    """Where results go."""
    add = group.add_argument
    add("--output_path", default="", help="folder of the result tree; several experiments share its originals")
    add("--exp_name", default="", help="name of the experiment, may contain slashes")
    add("--save_images", type=boolean, default=True, help="write the result tree; else only the statistics")
    add("--save_x_t", type=boolean, default=False, help="write the clean estimate of every outer step")
    add("--save_z_t", type=boolean, default=False, help="write the noisy image of every outer step")
    add("--image_format", default="jpg", choices=IMAGE_FORMATS, help="jpg as published, png without loss")
    add(
        "--merge_and_eval",
        type=boolean,
        default=False,
        help="explain nothing: join the summaries of all num_chunks chunks into summary.yaml",
    )


def add_network_flags(group) -> None:
    """The networks, the device and its arithmetic."""
    add = group.add_argument
    add("--model_path", default="models/ddpm-celeba.pt", help="weights of the diffusion model")
    add("--classifier_path", default="models/classifier.pth", help="the classifier to explain")
    add("--oracle_path", default="models/oracle.pth", help="accepted as published; no effect on this job")
    add("--gpu", default="0", help="index of the CUDA GPU, or cpu")
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        default=None,
        help="arithmetic of the U-Net's convolutions; unset: fp16 with --use_fp16, else fp32",
    )
    add(
        "--pad_batches",
        type=boolean,
        default=False,
        help="run every chain on batch_size images: an image's bytes then do not depend on its company",
    )


def add_method_flags(group) -> None:
    """The algorithm and its weights."""
    add = group.add_argument
    add("--seed", type=integer(0), default=4, help="seed of all noise")
    add(
        "--noise",
        choices=tuple(NOISE_SOURCES),
        default="per_image",
        help="per_image: depends on (seed, id, scale, step) alone; stream: one generator, as published",
    )
    add("--start_step", type=integer(), default=60, help="noise level tau, in respaced timesteps")
    add(
        "--classifier_scales",
        type=number_list(0),
        default="8,10,15",
        help="weights of the classifier, tried in this order until the decision flips",
    )
    add("--use_logits", type=boolean, default=False, help="pull on the logit instead of the log-probability")
    add("--l1_loss", type=number(0), default=0.0, help="weight of the L1 distance of noisy image and input")
    add("--l2_loss", type=number(0), default=0.0, help="weight of the L2 distance of noisy image and input")
    add("--l_perc", type=number(0), default=0.0, help="weight of the perceptual (VGG19) distance to the input")
    add(
        "--l_perc_layer",
        type=integer(1),
        default=1,
        help="the perceptual distance uses VGG19's features[:layer]",
    )
    add(
        "--use_sampling_on_x_t",
        type=boolean,
        default=True,
        help="sample the chains behind x_t; else their means",
    )
    add("--sampling_scale", type=number(0), default=1.0, help="multiplies the noise of the reverse steps")
    add(
        "--guided_iterations",
        type=integer(0),
        default=9999999,
        help="steps with gradients, counted from the first",
    )
    add("--clip_denoised", type=boolean, default=True, help="clip the predicted clean images to [-1, 1]")
    add("--use_ddim", type=boolean, default=False, help="accepted as published; has no effect")


def add_family_flags(group) -> None:
    """What the relatives of DiME have of their own, under the names and defaults of their published code."""
    add = group.add_argument
    add("--method", choices=tuple(METHODS), default="dime", help="how the counterfactual is made")
    for flag in ("--self_optimized_masking", "--mask"):
        add(flag, type=boolean, default=True, help="accepted as published; no effect: --method decides")
    for_fast = "fastdime and gmd: "
    add(
        "--scale_grads", type=boolean, default=False, help="fastdime: divide gradients by sqrt(alpha_bar), as dime does"
    )
    add("--warmup_step", type=integer(0), default=30, help=for_fast + "outer step from which the mask is used")
    add("--dilation", type=odd, default=5, help=for_fast + "side of the squares that widen the mask, odd")
    add(
        "--masking_threshold", type=number(0, 1), default=0.15, help=for_fast + "relative change that counts as changed"
    )
    add("--grad_scale", type=number(0), default=1.5, help="maskdime: factor on all gradients")
    add("--topk_ratio", type=number(0, 1), default=0.4, help="maskdime: share of the pixels that may change")
    add("--x_t_rate", type=number(0, 1), default=0.05, help="maskdime: share of those in the clean estimate")
    add("--blur_kernel", type=odd, default=7, help="maskdime: side of the squares that widen the masks, odd")
    add("--blur_sigma", type=number(0), default=3.0, help="maskdime: accepted as published; has no effect")
    add("--per_channel", type=boolean, default=True, help="maskdime: each colour channel has its own mask")
    add("--grads_clip", type=boolean, default=True, help="maskdime: clamp the class gradient to its usual range")
    add(
        "--clip_sigma", type=number(0), default=3.0, help="maskdime: that range, in standard deviations around the mean"
    )


def odd(text: str) -> int:
    """Flag type: an odd whole number from 1 on."""
    value = integer(1)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is not an odd number")
    return value


def attribute(text: str) -> int:
    """Flag type: one of CelebA's attributes, by index or by name."""
    if text in ATTRIBUTES:
        return ATTRIBUTES.index(text)
    try:
        index = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an attribute of CelebA (such as Smiling or 31)") from None
    if not -1 <= index < len(ATTRIBUTES):
        raise argparse.ArgumentTypeError(f"{text} is not an attribute: CelebA has 0 to {len(ATTRIBUTES) - 1}")
    return index


def build_diffusion(args: argparse.Namespace) -> GaussianDiffusion:
    """The respaced diffusion process; start_step must lie inside it."""
    flags = args_to_dict(args, diffusion_defaults().keys())
    flags["steps"] = flags.pop("diffusion_steps")
    try:
        diffusion = create_gaussian_diffusion(**flags)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not 1 <= args.start_step < diffusion.num_timesteps:
        raise InputError(
            f"--start_step {args.start_step}: the process has {diffusion.num_timesteps} timesteps "
            f"(--timestep_respacing {args.timestep_respacing!r}); give 1 to {diffusion.num_timesteps - 1}"
        )
    return diffusion


def build_job(args: argparse.Namespace, tree: ResultTree) -> Job:
    """The images of this chunk."""
    if args.query_label == -1:
        raise InputError("--query_label is missing: which attribute is explained, for example 31 or Smiling")
    dataset = open_dataset(args.dataset, args.data_dir, args.image_size, args.use_train)
    limit = args.batch_size * args.num_batches
    ids = select_ids(dataset, args.query_label, args.target_label, limit, args.num_chunks, args.chunk)
    return Job(
        dataset=dataset,
        ids=ids,
        query_label=args.query_label,
        batch_size=args.batch_size,
        tree=tree,
        config=vars(args),
        num_chunks=args.num_chunks,
        chunk=args.chunk,
        save_images=args.save_images,
        conditional=args.class_cond,
    )


def build_explainer(args: argparse.Namespace, diffusion: GaussianDiffusion, device: torch.device) -> Explainer:
    """The networks, loaded onto the device, and the method."""
    classifier = load_classifier(args.classifier_path, device)
    if args.query_label >= classifier.num_outputs:
        raise InputError(
            f"--query_label {args.query_label}: {args.classifier_path} has {classifier.num_outputs} outputs, from 0"
        )
    model = load_unet(args.model_path, args_to_dict(args, model_and_diffusion_defaults().keys()), device)
    model.convert_to(usable_precision(args, device))
    keep = {"x_t": args.save_x_t, "z_t": args.save_z_t}
    return Explainer(
        model=model,
        diffusion=diffusion,
        guidance=Guidance(
            classifier,
            BinaryAttribute(args.query_label, args.use_logits),
            load_perceptual(args.l_perc_layer, device) if args.l_perc else None,
            l1=args.l1_loss,
            l2=args.l2_loss,
            l_perc=args.l_perc,
        ),
        method=METHODS[args.method](Settings.of({**vars(args), "clip_per_image": args.noise == "per_image"})),
        noise=NOISE_SOURCES[args.noise](args.seed, device),
        scales=args.classifier_scales,
        keep_frames=frozenset(kind for kind in FRAME_KINDS if keep[kind] and args.save_images),
        pad_to=args.batch_size if args.pad_batches else None,
    )


def usable_precision(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    """The wanted precision, or float32 where the device cannot compute in it (which is said)."""
    wanted = args.precision or ("fp16" if args.use_fp16 else "fp32")
    lacking = (wanted == "fp16" and device.type == "cpu") or (
        wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    if lacking:
        say(f"{wanted} does not run on {device}: the U-Net computes in fp32.")
        return torch.float32
    return PRECISIONS[wanted]


def report(summary: Summary, tree: ResultTree) -> None:
    """The last lines: how many images, how accurate, how many flipped, and where everything lies."""
    failed = f", {summary['failed']} failed (see failed.yaml)" if summary.get("failed") else ""
    print(
        f"{summary['n']} images: classifier accuracy {summary['clean acc']:.1f} %, "
        f"flip rate {100 * summary['cf acc']:.1f} %, mean change {summary['l_1']:.4f}{failed}"
    )
    print(f"Results: {tree.results}")


if __name__ == "__main__":
    run(main)
