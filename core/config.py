"""The flags of main.py: each is one field, with its published name and default, its help, and what it may be."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from dime.core.arithmetic import PRECISIONS
from dime.core.cli import Parser, boolean, integer, number_list
from dime.core.datasets import DATASETS
from dime.core.errors import InputError
from dime.core.files import read_yaml
from dime.core.methods import WITH_INNER_CHAIN
from dime.core.presets import PRESETS
from dime.core.results import FRAME_KINDS, IMAGE_FORMATS
from dime.core.settings import Settings, flag
from guided_diffusion.script_util import add_dict_to_argparser, model_and_diffusion_defaults


def _query(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data and question"""

    data_dir: str = flag("", "folder of the data set, local or gs://, az://; '' is the current one")
    dataset: str = flag(
        "CelebA",
        "CelebA's val partition, its mini-val set of 1000, a folder of images, mnist, ...",
        choices=tuple(DATASETS),
    )
    download: bool = flag(False, "fetch the data set into data_dir first, where it is not there (mnist)")
    images: Sequence[str] = flag((), "explain these files instead of a data set")
    resize: str = flag(
        "crop", "crop: shorter side to image_size, then the centre; stretch: both sides", choices=("crop", "stretch")
    )
    use_train: bool = flag(False, "the train partition instead of val")
    decision: str = flag(
        "binary",
        "binary: one output of the classifier, yes or no; multiclass: one of several classes",
        choices=("binary", "multiclass"),
    )
    query_label: int | str = flag(-1, "binary: output to explain, by index or name (31 is CelebA's Smiling)", _query)
    target: str = flag(
        "",
        "multiclass: class to turn the decision into, by index or name (several, separated by commas, give one "
        "experiment each), runner-up, or a csv file of file,class; unset: runner-up",
    )
    class_names: str = flag("", "file with the names of the classifier's outputs, one a line")
    target_label: int = flag(
        -1, "keep only images that are to become this label (0 or 1); -1 keeps all", integer(-1, 1)
    )
    batch_size: int = flag(16, "images explained together", integer(1))
    num_batches: int = flag(50, "explain at most num_batches * batch_size images", integer(1))
    num_chunks: int = flag(1, "split the images over this many jobs", integer(1))
    chunk: int = flag(0, "which of the num_chunks parts this job does, from 0", integer(0))


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output"""

    output_path: str = flag("", "folder of the result tree; several experiments share its originals")
    exp_name: str = flag("", "name of the experiment, may contain slashes")
    save_images: bool = flag(True, "write the result tree; else only the statistics")
    save_x_t: bool = flag(False, "write the clean estimate of every outer step")
    save_z_t: bool = flag(False, "write the noisy image of every outer step")
    image_format: str = flag("jpg", "jpg as published, png without loss", choices=IMAGE_FORMATS)
    merge_and_eval: bool = flag(False, "explain nothing: join the summaries of all num_chunks chunks into summary.yaml")
    allow_partial: bool = flag(
        False, "merge although chunks are missing or unfinished; the summary says what is missing"
    )
    overwrite: bool = flag(
        False,
        "start afresh: remove what an earlier run of this experiment (this chunk) has written; else continue it",
    )
    on_bad_image: str = flag(
        "refuse",
        "refuse: do not begin while images are missing or empty, and record what proves damaged later in failed.yaml; "
        "record: record them all; abort: stop at the first",
        choices=("refuse", "record", "abort"),
    )


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks and machine"""

    model_path: str = flag("models/ddpm-celeba.pt", "the diffusion model: a file of weights or a diffusers folder")
    classifier_path: str = flag(
        "models/classifier.pth", "the classifier to explain: a file, or KIND:NAME[@weights] (models/README.md)"
    )
    classifier_size: int | None = flag(None, "side of the images that the classifier takes", integer(1))
    classifier_mean: Sequence[float] | None = flag(None, "mean of each channel that it expects", number_list())
    classifier_std: Sequence[float] | None = flag(None, "standard deviation likewise", number_list())
    classifier_range: Sequence[float] | None = flag(
        None, "lowest and highest pixel value before that, such as 0,1 or 0,255", number_list()
    )
    trust_classifier: bool = flag(False, "load a classifier whose file is a program, which then runs here")
    perceptual_path: str = flag("", "small CNN for the perceptual distance; unset: torchvision's VGG19")
    oracle_path: str = flag("models/oracle.pth", "the attribute oracle; used with --oracle_figures only")
    face_path: str = flag("models/resnet50_vggface2_model.pkl", "VGGFace2's network; used likewise")
    oracle_figures: bool = flag(
        False, "FVA and MNAC in summary.yaml, when chunks are merged or there is one chunk; else they are 0"
    )
    gpu: str = flag(
        "0", "index of the CUDA GPU, or cpu; several, such as 0,1, start a process each, which share the run"
    )
    precision: str | None = flag(
        None,
        "arithmetic of the U-Net's convolutions; unset: fp16 with --use_fp16, else fp32",
        choices=tuple(PRECISIONS),
    )
    compile: bool = flag(
        False, "compile the U-Net (minutes, once), for one batch size: implies --pad_batches; checked before it is used"
    )
    pad_batches: bool = flag(
        False, "run every chain on batch_size images: an image's bytes then do not depend on its company"
    )


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Accepted, without effect"""

    use_ddim: bool = flag(False, "as published; has no effect")
    refill: bool | None = flag(None, "of an earlier version; has no effect", boolean)
    self_optimized_masking: bool = flag(True, "as published; has no effect: --method decides")
    mask: bool = flag(True, "as published; has no effect: --method decides")
    blur_sigma: float = flag(3.0, "as published; has no effect")


GROUPS = (Data, Output, Networks, Settings, Accepted)


@dataclass(frozen=True, kw_only=True)
class Config(*GROUPS):
    """A command of main.py. diffusion: the flags of model_and_diffusion_defaults() that were given."""

    preset: Sequence[str] = ()
    diffusion: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The method alone."""
        return Settings.of(vars(self))

    @property
    def kept_frames(self) -> frozenset[str]:
        """Which kinds of frames are written."""
        return frozenset(kind for kind in FRAME_KINDS if self.save_images and getattr(self, f"save_{kind}"))

    def flags(self) -> dict[str, Any]:
        """Every flag with its value, but for those of the diffusion model."""
        return {name: value for name, value in asdict(self).items() if name != "diffusion"}


def parse_config(description: str, arguments: Sequence[str] | None = None) -> Config:
    """The flags of the command line, or of `arguments`, checked as far as they can be before any file is opened.

    A preset's flags stand before those that are given, which win. Raises InputError for flags that contradict each
    other; anything that argparse refuses is one line and exit code 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(description=description)
    parser.add_argument(
        "--preset",
        type=_presets,
        default=[],
        metavar="NAMES",
        help=f"other defaults for several flags: a file of them, or one or several of {', '.join(PRESETS)}",
    )
    kinds = {bool: boolean, int: int, float: float}
    for group in GROUPS:
        titled = parser.add_argument_group(group.__doc__.splitlines()[0].rstrip("."))
        for entry in dataclasses.fields(group):
            choices = entry.metadata["choices"]
            titled.add_argument(
                f"--{entry.name}",
                type=entry.metadata["type"] or kinds.get(entry.type, str),
                default=as_text(entry.default),  # for --help alone: what is not given stays unset
                choices=choices() if callable(choices) else choices,
                help=entry.metadata["help"],
                **({"nargs": "+", "metavar": "FILE"} if entry.default == () else {}),
            )
    model_flags = model_and_diffusion_defaults()
    add_dict_to_argparser(parser.add_argument_group("diffusion model (as it was trained)"), model_flags)

    names = parser.given(arguments).get("preset", ())
    words = [f"--{flag}={as_text(value)}" for name in names for flag, value in preset_flags(name).items()]
    given = parser.given([*words, *arguments])
    config = Config(
        **{name: value for name, value in given.items() if name not in model_flags},
        diffusion={name: value for name, value in given.items() if name in model_flags},
    )
    _require_consistent(config)
    return config


def as_text(value: Any) -> Any:
    """Several numbers joined by commas; anything else as it is."""
    return ",".join(f"{item:g}" for item in value) if isinstance(value, (list, tuple)) else value


def preset(names: str, **overrides: Any) -> Settings:
    """The settings of presets (names separated by commas; the later ones win) with some of them replaced."""
    try:
        flags = {flag: value for name in _presets(names) for flag, value in preset_flags(name).items()}
        return Settings.of(flags, **overrides)
    except (argparse.ArgumentTypeError, TypeError) as error:
        raise InputError(str(error)) from None


def _presets(text: str) -> list[str]:
    """Flag type: names of presets, separated by commas; where two set the same flag, the later one wins."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PRESETS and not Path(name).is_file()]
    if unknown:
        known = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(
            f"no preset is called {unknown[0]!r}; there are {known}, and files such as tune.py's"
        )
    return names


def preset_flags(name: str) -> dict[str, Any]:
    """The flags of a preset, or of a YAML file of flags. Raises InputError for a file that is none."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        flags = read_yaml(Path(name))
    except (OSError, ValueError) as error:
        raise InputError(f"--preset {name}: {error}") from None
    if not isinstance(flags, dict) or not all(isinstance(flag, str) for flag in flags):
        raise InputError(f"--preset {name}: is no file of flags with their values, such as tune.py writes")
    return {flag: tuple(value) if isinstance(value, list) else value for flag, value in flags.items()}


def _require_consistent(config: Config) -> None:
    if config.chunk >= config.num_chunks:
        raise InputError(
            f"--chunk {config.chunk}: with --num_chunks {config.num_chunks} the last chunk is {config.num_chunks - 1}"
        )
    if PurePath(config.exp_name).is_absolute() or ".." in PurePath(config.exp_name).parts:
        raise InputError(f"--exp_name {config.exp_name}: must be a name below OUTPUT_PATH/Results, such as exp/name")
    if (config.pad_batches or config.compile) and config.noise == "stream":
        raise InputError("--pad_batches, --compile: --noise stream would draw for the padding too; leave them out")
    if config.oracle_figures and not (config.save_images or config.merge_and_eval):
        raise InputError("--oracle_figures True: is measured on the saved images; leave out --save_images False")
    if config.method not in WITH_INNER_CHAIN and (config.inner_steps != "0" or config.inner_sampler != "ddpm"):
        raise InputError(f"--inner_steps, --inner_sampler: --method {config.method} has no inner chain; leave them out")
    if config.target and config.decision != "multiclass":
        raise InputError("--target: a binary decision has one opposite; leave it out, or give --decision multiclass")
