"""From a command to what it needs: the images, the question about them, and the explainer that answers it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dime.core.arithmetic import CompiledUNet, compile_unet, prepare_unet
from dime.core.cli import say
from dime.core.config import Config
from dime.core.datasets import Source, download, open_dataset
from dime.core.explain import Batch, Explainer
from dime.core.job.question import Question, ask
from dime.core.networks.checks import check_classifier
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.diffusion import DiffusionModel, load_diffusion
from dime.core.networks.features import load_perceptual
from dime.core.photos import BadImageError


@dataclass(frozen=True)
class Setup:
    """A command, ready to run.

    config: its flags, where they leave something open as it was decided: precision, compile, query_label. selection:
    the ids that all chunks together explain.
    """

    config: Config
    device: torch.device
    source: Source
    question: Question
    selection: list[int]
    explainer: Explainer

    def batch(self, ids: list[int], images: Sequence[torch.Tensor] | None = None) -> Batch:
        """Images of the source (or `images` (C, H, W) in their places), with what is known and asked of each."""
        labels, target, device = self.question.labels, self.question.target, self.device
        conditional = self.explainer.diffusion.class_cond
        return Batch(
            ids=ids,
            x=torch.stack(images or [self.source.load(id) for id in ids]).to(device),
            label=None if labels is None else torch.from_numpy(labels[ids]).long().to(device),
            target=torch.tensor([target(id) for id in ids], device=device) if target else None,
            conditions=torch.stack([self.source.conditions(id) for id in ids]).to(device) if conditional else None,
        )

    def in_float32(self) -> Explainer:
        """The same explainer in full precision.

        Its noise is each image's own: a second attempt must not move the stream that the others draw from.
        """
        settings = replace(self.explainer.settings, noise="per_image")
        return replace(self.explainer, diffusion=load_model(self.config, self.device, "fp32"), settings=settings)


def set_up(config: Config, device: torch.device) -> Setup:
    """Load and check everything; InputError for what does not fit together. Nothing is written."""
    precision = config.precision or ("fp16" if config.diffusion.get("use_fp16") else "fp32")
    lacking = (precision == "fp16" and device.type == "cpu") or (
        precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    if lacking:
        say(f"{precision} does not run on {device}: the U-Net computes in fp32.")
        precision = "fp32"
    diffusion = load_model(config, device, precision)
    if config.download:
        download(config.dataset, config.data_dir)
    source = open_dataset(
        config.dataset, config.data_dir, diffusion.image_size, config.use_train, config.images, config.resize,
        diffusion.channels,
    )  # fmt: skip
    classifier = load_classifier(
        config.classifier_path, device, size=config.classifier_size, mean=config.classifier_mean,
        std=config.classifier_std, value_range=config.classifier_range, trust=config.trust_classifier,
    )  # fmt: skip
    question = ask(config, source, classifier)
    selection = question.select(len(source), config.target_label, config.batch_size * config.num_batches)
    if config.compile:
        shape = torch.Size((config.batch_size, diffusion.channels, diffusion.image_size, diffusion.image_size))
        diffusion = replace(diffusion, network=compile_unet(diffusion.network, shape))
    compiled = isinstance(diffusion.network, CompiledUNet)
    explainer = Explainer(
        classifier,
        diffusion,
        question.decision,
        config.settings,
        load_perceptual(config.l_perc_layer, config.perceptual_path, device=device) if config.l_perc else None,
        keep_frames=config.kept_frames,
        pad_to=config.batch_size if config.pad_batches or compiled else None,
    )
    try:  # the networks on the first image, to find out now what would fail in the middle of the work
        image = source.load(selection[0])
    except BadImageError:
        image = source.stand_in()
    x, conditions = image[None].to(device), source.conditions(selection[0])
    diffusion.check(x, None if conditions is None else conditions[None])
    check_classifier(classifier, x, question.decision, config.classifier_path)
    config = replace(config, precision=precision, compile=compiled, query_label=question.query)
    return Setup(config, device, source, question, selection, explainer)


def load_model(config: Config, device: torch.device, precision: str) -> DiffusionModel:
    """The diffusion model, ready to compute."""
    diffusion = load_diffusion(config.model_path, config.diffusion, device)
    published = config.noise == "stream" or config.method == "gmd"
    prepare_unet(diffusion.network, precision, device, published=published)
    return diffusion
