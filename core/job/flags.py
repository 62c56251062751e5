"""The flags of main.py: the published names and defaults, help for each, and the ranges they are checked against."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePath

from dime.core.arithmetic import PRECISIONS
from dime.core.cli import Parser, attribute, boolean, integer, number, number_list
from dime.core.datasets import DATASETS
from dime.core.errors import InputError
from dime.core.estimates import chain_lengths
from dime.core.methods import METHODS, WITH_INNER_CHAIN, Settings
from dime.core.noise import NOISE_SOURCES
from dime.core.presets import PRESETS
from dime.core.results import IMAGE_FORMATS
from guided_diffusion.script_util import add_dict_to_argparser, model_and_diffusion_defaults


def parse_flags(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the command line, or of `arguments`, each one checked as far as it can be alone."""
    parser = Parser(description=description)
    parser.add_argument(
        "--preset",
        type=_presets,
        default=[],
        metavar="NAMES",
        help=f"other defaults for several flags (core/presets.py); one or several of {', '.join(PRESETS)}",
    )
    _data_flags(parser.add_argument_group("data"))
    _output_flags(parser.add_argument_group("output"))
    _network_flags(parser.add_argument_group("networks and machine"))
    _method_flags(parser.add_argument_group("method"))
    _family_flags(parser.add_argument_group("methods that grew out of DiME"))
    diffusion_group = parser.add_argument_group("diffusion model (as it was trained)")
    add_dict_to_argparser(diffusion_group, model_and_diffusion_defaults())
    args = parser.parse_args(arguments)
    if args.preset:
        for name in args.preset:
            parser.set_defaults(**PRESETS[name])
        args = parser.parse_args(arguments)
    if args.chunk >= args.num_chunks:
        raise InputError(
            f"--chunk {args.chunk}: with --num_chunks {args.num_chunks} the last chunk is {args.num_chunks - 1}"
        )
    if PurePath(args.exp_name).is_absolute() or ".." in PurePath(args.exp_name).parts:
        raise InputError(f"--exp_name {args.exp_name}: must be a name below OUTPUT_PATH/Results, such as exp/name")
    if args.refill and args.noise == "stream":
        raise InputError("--refill True: --noise stream draws for one batch after the other; leave one of them out")
    if (args.pad_batches or args.compile) and args.noise == "stream":
        raise InputError("--pad_batches, --compile: --noise stream would draw for the padding too; leave them out")
    if args.oracle_figures and not (args.save_images or args.merge_and_eval):
        raise InputError("--oracle_figures True: is measured on the saved images; leave out --save_images False")
    if args.refill is None:
        args.refill = args.noise != "stream"
    if args.method not in WITH_INNER_CHAIN and (args.inner_steps != "0" or args.inner_sampler != "ddpm"):
        raise InputError(f"--inner_steps, --inner_sampler: --method {args.method} has no inner chain; leave them out")
    return args


def _data_flags(group: argparse._ArgumentGroup) -> None:
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


def _output_flags(group: argparse._ArgumentGroup) -> None:
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
    add(
        "--allow_partial",
        type=boolean,
        default=False,
        help="merge although chunks are missing or unfinished; the summary says what is missing",
    )
    add(
        "--overwrite",
        type=boolean,
        default=False,
        help="start afresh: remove what an earlier run of this experiment (this chunk) has written; else continue it",
    )
    add(
        "--on_bad_image",
        choices=("refuse", "record", "abort"),
        default="refuse",
        help="refuse: do not begin while images are missing or empty, and record what proves damaged later in "
        "failed.yaml; record: record them all; abort: stop at the first",
    )


def _network_flags(group: argparse._ArgumentGroup) -> None:
    """The networks, the device and its arithmetic."""
    add = group.add_argument
    add("--model_path", default="models/ddpm-celeba.pt", help="weights of the diffusion model")
    add("--classifier_path", default="models/classifier.pth", help="the classifier to explain")
    add("--perceptual_path", default="", help="small CNN for the perceptual distance; unset: torchvision's VGG19")
    add("--oracle_path", default="models/oracle.pth", help="the attribute oracle; used with --oracle_figures only")
    add("--face_path", default="models/resnet50_vggface2_model.pkl", help="VGGFace2's network; used likewise")
    add(
        "--oracle_figures",
        type=boolean,
        default=False,
        help="FVA and MNAC in summary.yaml, when chunks are merged or there is one chunk; else they are 0",
    )
    add("--gpu", default="0", help="index of the CUDA GPU, or cpu")
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        default=None,
        help="arithmetic of the U-Net's convolutions; unset: fp16 with --use_fp16, else fp32",
    )
    add(
        "--refill",
        type=boolean,
        default=None,
        help="the places of images that have flipped go to the next ones, so that later scales run full batches too; "
        "unset: True, but with --noise stream",
    )
    add(
        "--compile",
        type=boolean,
        default=False,
        help="compile the U-Net (minutes, once), for one batch size: implies --pad_batches; checked before it is used",
    )
    add(
        "--pad_batches",
        type=boolean,
        default=False,
        help="run every chain on batch_size images: an image's bytes then do not depend on its company",
    )


def _method_flags(group: argparse._ArgumentGroup) -> None:
    """The algorithm and its weights."""
    add = group.add_argument
    add("--seed", type=integer(0, 2**63 - 1), default=4, help="seed of all noise")
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
    add("--l_perc", type=number(0), default=0.0, help="weight of the perceptual distance to the input")
    add(
        "--l_perc_layer",
        type=integer(1),
        default=1,
        help="the perceptual distance uses VGG19's features[:layer], or so many levels of --perceptual_path",
    )
    use_sampling = Settings.use_sampling_on_x_t
    add("--use_sampling_on_x_t", type=boolean, default=use_sampling, help="sample the chains behind x_t; else means")
    add(
        "--sampling_scale",
        type=number(0),
        default=Settings.sampling_scale,
        help="multiplies the noise of the reverse steps",
    )
    add(
        "--guided_iterations",
        type=integer(0),
        default=Settings.guided_iterations,
        help="steps with gradients, counted from the first",
    )
    add("--clip_denoised", type=boolean, default=Settings.clip_denoised, help="clip predictions of x to [-1, 1]")
    add(
        "--inner_steps",
        type=_inner_steps,
        default=Settings.inner_steps,
        help="dime, maskdime2: evaluations K of the chain behind x_t, over evenly spread indices; or a schedule "
        "such as 8:20,1 (8 in the first 20 steps, then 1); 1 costs nothing beyond the step's own; 0 is all indices",
    )
    add(
        "--inner_sampler",
        choices=("ddpm", "ddim"),
        default=Settings.inner_sampler,
        help="the steps of that chain; ddim is deterministic",
    )
    add("--use_ddim", type=boolean, default=False, help="accepted as published; has no effect")


def _family_flags(group: argparse._ArgumentGroup) -> None:
    """What the relatives of DiME have of their own, under the names and defaults of their published code."""
    add = group.add_argument
    add("--method", choices=tuple(METHODS), default="dime", help="how the counterfactual is made")
    for flag in ("--self_optimized_masking", "--mask"):
        add(flag, type=boolean, default=True, help="accepted as published; no effect: --method decides")
    masks, largest = "fastdime, gmd and the methods of two passes: ", "maskdime, maskdime2: "
    add(
        "--scale_grads",
        type=boolean,
        default=Settings.scale_grads,
        help="fastdime and its relatives: divide gradients by sqrt(alpha_bar), as dime does",
    )
    add(
        "--warmup_step",
        type=integer(0),
        default=Settings.warmup_step,
        help="fastdime, fastdime2+, gmd: outer step from which the mask is used",
    )
    add("--dilation", type=_odd, default=Settings.dilation, help=masks + "side of the squares that widen the mask, odd")
    add(
        "--masking_threshold",
        type=number(0, 1),
        default=Settings.masking_threshold,
        help=masks + "relative change that counts as changed",
    )
    add("--grad_scale", type=number(0), default=Settings.grad_scale, help=largest + "factor on all gradients")
    add("--topk_ratio", type=number(0, 1), default=Settings.topk_ratio, help=largest + "share of pixels that change")
    add("--x_t_rate", type=number(0, 1), default=Settings.x_t_rate, help=largest + "share of those in the estimate")
    add("--blur_kernel", type=_odd, default=Settings.blur_kernel, help=largest + "side of the squares, odd")
    add("--blur_sigma", type=number(0), default=3.0, help="accepted as published; has no effect")
    add("--per_channel", type=boolean, default=Settings.per_channel, help=largest + "a mask for each colour channel")
    add(
        "--grads_clip",
        type=boolean,
        default=Settings.grads_clip,
        help=largest + "clamp the class gradient to its usual range",
    )
    add(
        "--clip_sigma",
        type=number(0),
        default=Settings.clip_sigma,
        help=largest + "that range, in standard deviations around the mean",
    )


def _inner_steps(text: str) -> str:
    """Flag type: see core.estimates.chain_lengths."""
    try:
        chain_lengths(text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _presets(text: str) -> list[str]:
    """Flag type: names of presets, separated by commas; where two set the same flag, the later one wins."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no preset is called {unknown[0]!r}; there are {', '.join(PRESETS)}")
    return names


def _odd(text: str) -> int:
    """Flag type: an odd whole number from 1 on."""
    value = integer(1)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is not an odd number")
    return value
