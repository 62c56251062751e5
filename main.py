"""DiME: counterfactual explanations of a classifier's decisions on CelebA.

Every image is noised half-way and denoised again while the classifier pulls it over its decision and two distances
hold it at the input; the smallest realistic change that flips the decision remains. Run it again with --merge_and_eval
True to join the summaries of chunks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dime.core.arithmetic import keep_freed_memory, prepare_unet
from dime.core.checkpoints import load_unet
from dime.core.cli import run, say, select_device
from dime.core.compiled import CompiledUNet, compile_unet
from dime.core.datasets import CelebA, chunk_of, open_dataset, select_ids
from dime.core.errors import InputError
from dime.core.evaluation.features import Machine
from dime.core.evaluation.measures import face_features, oracle_logits, summary_figures
from dime.core.explain import Explainer
from dime.core.guidance import BinaryAttribute, Guidance
from dime.core.job.chunk import Check, Job, require_images
from dime.core.job.flags import parse_flags
from dime.core.job.identity import identity_of
from dime.core.job.merging import merge_chunks
from dime.core.job.preemption import EXIT_CONTINUE, Interrupted, Preemption
from dime.core.job.progress_log import ProgressLog
from dime.core.job.recovery import RecoveringExplainer
from dime.core.methods import METHODS, Settings
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.networks.features import VGG19_URL, load_perceptual
from dime.core.networks.files import pretrained_weights
from dime.core.noise import NOISE_SOURCES, PerImageNoise
from dime.core.results import FRAME_KINDS, ResultTree
from dime.core.summary import Summary, write_summary
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import (
    args_to_dict,
    create_diffusion,
    model_and_diffusion_defaults,
)

EXIT_SOME_FAILED = 3


def main() -> int:
    """Run one chunk, or merge the summaries of all of them."""
    args = parse_flags(__doc__.splitlines()[0])
    tree = ResultTree(Path(args.output_path), args.exp_name, args.image_format)
    # --overwrite, given again, would start afresh
    preemption = Preemption("run the same command again" + (", without --overwrite," if args.overwrite else ""))
    try:
        with preemption:
            summary = merge(args, tree) if args.merge_and_eval else explain(args, tree, preemption.check)
    except Interrupted as interrupted:
        print(preemption.farewell(str(interrupted)), file=sys.stderr)
        return EXIT_CONTINUE
    report(summary, tree)
    return EXIT_SOME_FAILED if summary.get("failed") else 0


def explain(args: argparse.Namespace, tree: ResultTree, check: Check) -> Summary:
    """Explain the images of one chunk, from where an earlier run of the same command has left it.

    Everything that can be checked is checked before anything is written.
    """
    device = select_device(args.gpu)
    args.precision = usable_precision(args, device)
    if (args.save_x_t or args.save_z_t) and not args.save_images:
        say("--save_images False: no image is written, and no frame of --save_x_t and --save_z_t.")
    keep_freed_memory()
    diffusion = build_diffusion(args)
    dataset, selection = select_images(args)
    explainer = build_explainer(args, diffusion, device, check)
    args.compile = isinstance(explainer.explainer.model, CompiledUNet)
    job = build_job(args, tree, dataset, selection, device)
    check()
    figures = build_figures(args, device) if args.oracle_figures and args.num_chunks == 1 else None
    summary = job.run(explainer, device, check)
    return with_figures(summary, figures, tree)


def merge(args: argparse.Namespace, tree: ResultTree) -> Summary:
    """Join the summaries of all chunks."""
    figures = build_figures(args, select_device(args.gpu)) if args.oracle_figures else None
    return with_figures(merge_chunks(tree, args.num_chunks, args.allow_partial), figures, tree)


def build_diffusion(args: argparse.Namespace) -> SpacedDiffusion:
    """The respaced diffusion process; start_step must lie inside it."""
    try:
        diffusion = create_diffusion(vars(args))
    except ValueError as error:
        raise InputError(str(error)) from None
    if not 1 <= args.start_step < diffusion.num_timesteps:
        raise InputError(
            f"--start_step {args.start_step}: the process has {diffusion.num_timesteps} timesteps "
            f"(--timestep_respacing {args.timestep_respacing!r}); give 1 to {diffusion.num_timesteps - 1}"
        )
    return diffusion


def select_images(args: argparse.Namespace) -> tuple[CelebA, list[int]]:
    """The data set, and the ids that all chunks together explain."""
    if args.query_label == -1:
        raise InputError("--query_label is missing: which attribute is explained, for example 31 or Smiling")
    dataset = open_dataset(args.dataset, args.data_dir, args.image_size, args.use_train)
    limit = args.batch_size * args.num_batches
    selection = select_ids(dataset, args.query_label, args.target_label, limit)
    ids = chunk_of(selection, args.num_chunks, args.chunk)
    require_images(dataset, selection, ids, all_of_them=args.on_bad_image != "record")
    return dataset, selection


def build_job(
    args: argparse.Namespace, tree: ResultTree, dataset: CelebA, selection: list[int], device: torch.device
) -> Job:
    """The images of this chunk, and what makes this run the one that it is."""
    weights = {name: getattr(args, name) for name in ("model_path", "classifier_path")}
    if args.l_perc:
        weights["perceptual_path"] = args.perceptual_path or pretrained_weights(VGG19_URL)
    log = ProgressLog(
        tree,
        ids=chunk_of(selection, args.num_chunks, args.chunk),
        num_chunks=args.num_chunks,
        chunk=args.chunk,
        save_images=args.save_images,
        frames=kept_frames(args),
        steps=args.start_step,
    )
    return Job(
        dataset=dataset,
        log=log,
        total=len(selection),
        query_label=args.query_label,
        batch_size=args.batch_size,
        config=vars(args),
        identity=identity_of(vars(args), dataset, selection, weights, device),
        refill=args.refill,
        conditional=args.class_cond,
        abort_on_bad_image=args.on_bad_image == "abort",
        overwrite=args.overwrite,
    )


def kept_frames(args: argparse.Namespace) -> frozenset[str]:
    """Which kinds of frames are written."""
    keep = {"x_t": args.save_x_t, "z_t": args.save_z_t}
    return frozenset(kind for kind in FRAME_KINDS if keep[kind] and args.save_images)


def build_explainer(
    args: argparse.Namespace, diffusion: SpacedDiffusion, device: torch.device, check: Check
) -> RecoveringExplainer:
    """The networks, loaded onto the device, and the method; the check stands before every evaluation."""
    classifier = load_classifier(args.classifier_path, device)
    column = output_column(classifier, args.query_label, args.classifier_path)
    model = load_model(args, device, check, args.precision, args.compile)
    explainer = Explainer(
        model=model,
        diffusion=diffusion,
        guidance=Guidance(
            classifier,
            BinaryAttribute(column, args.use_logits),
            load_perceptual(args.l_perc_layer, device, args.perceptual_path) if args.l_perc else None,
            l1=args.l1_loss,
            l2=args.l2_loss,
            l_perc=args.l_perc,
        ),
        method=METHODS[args.method](Settings.of({**vars(args), "clip_per_image": args.noise == "per_image"})),
        noise=NOISE_SOURCES[args.noise](args.seed, device),
        scales=args.classifier_scales,
        keep_frames=kept_frames(args),
        pad_to=args.batch_size if args.pad_batches or isinstance(model, CompiledUNet) else None,
    )

    def in_float32() -> Explainer:
        """Its noise is each image's own: a second attempt must not move the stream that the others draw from."""
        return replace(explainer, model=load_model(args, device, check, "fp32"), noise=PerImageNoise(args.seed, device))

    return RecoveringExplainer(explainer, in_float32 if args.precision != "fp32" else None)


def load_model(
    args: argparse.Namespace, device: torch.device, check: Check, precision: str, compile: bool = False
) -> nn.Module:
    """The diffusion model's network, ready to compute, which may end the job wherever it is evaluated."""
    model = load_unet(args.model_path, args_to_dict(args, model_and_diffusion_defaults().keys()), device)
    prepare_unet(model, precision, device, published=args.noise == "stream" or args.method == "gmd")
    if compile:
        model = compile_unet(model, torch.Size((args.batch_size, 3, args.image_size, args.image_size)))
    model.register_forward_pre_hook(lambda *_: check())
    return model


Figures = Callable[[ResultTree], dict[str, float]]
"""Measures the FVA and MNAC of a whole tree."""


def build_figures(args: argparse.Namespace, device: torch.device) -> Figures:
    """The oracle figures of a summary, their networks loaded onto the device."""
    machine = Machine(device, args.batch_size)
    faces, attributes = face_features(args.face_path, machine), oracle_logits(args.oracle_path, machine)
    return lambda tree: summary_figures(tree, faces, attributes)


def with_figures(summary: Summary, figures: Figures | None, tree: ResultTree) -> Summary:
    """The summary with the figures that were asked for, here and on disk."""
    if figures is None:
        return summary
    summary = {**summary, **figures(tree)}
    write_summary(tree.report("summary.yaml"), summary)
    return summary


def usable_precision(args: argparse.Namespace, device: torch.device) -> str:
    """The wanted precision, or fp32 where the device cannot compute in it (which is said)."""
    wanted = args.precision or ("fp16" if args.use_fp16 else "fp32")
    lacking = (wanted == "fp16" and device.type == "cpu") or (
        wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    if lacking:
        say(f"{wanted} does not run on {device}: the U-Net computes in fp32.")
        return "fp32"
    return wanted


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
