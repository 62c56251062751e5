"""Named settings of main.py: --preset NAMES gives several flags other defaults; flags that are given win.

A preset is an entry here. Those of methods are measured in docs/methods.md; those of public diffusion models are the
flags that their authors publish (models/README.md says where the files are).
"""

from typing import Any

_ADM = {
    "attention_resolutions": "32,16,8",
    "num_res_blocks": 2,
    "learn_sigma": True,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "noise_schedule": "linear",
}
"""What Dhariwal and Nichol 2021 train, and those who build on their code."""
_256 = _ADM | {"image_size": 256, "num_channels": 256, "num_head_channels": 64, "diffusion_steps": 1000}
_SMALL = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 2,
    "learn_sigma": True,
    "diffusion_steps": 500,
    "use_logits": True,
    "l1_loss": 0.05,
    "l_perc_layer": 2,
}
"""What the project's own small models share."""
_INVERTED: dict[str, Any] = {
    "method": "inverted",
    "repaint": 0.1,
    "blur_kernel": 9,
    "fresh_noise": 0.9,
    "sampling_scale": 0,
    "confidence": 0.99,
    "shrink": True,
    "classifier_scales": (2.0, 4.0, 8.0, 15.0),
    "l1_loss": 0,
    "l_perc": 0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"method": "dime", "inner_steps": "0"},
    "fast": {"method": "dime", "inner_steps": "1"},
    # MaskDiME, as published for CelebA, finds the region that matters; DiME with the shortest chains repaints it
    "local": {
        "method": "maskdime2",
        "inner_steps": "1",
        "grad_scale": 8,
        "topk_ratio": 0.05,
        "x_t_rate": 0.5,
        "blur_kernel": 5,
        "per_channel": False,
        "grads_clip": False,
    },
    # inversion finds the part that serves the target and repaints it, calmly; what the decision does not need is undone
    "inverted": {**_INVERTED, "outer_steps": 10},
    "turbo": {**_INVERTED, "outer_steps": 6},
    # the paper's settings for CelebA, as in its published commands
    "celeba": {
        **_ADM,
        "image_size": 128,
        "num_channels": 128,
        "num_heads": 4,
        "diffusion_steps": 500,
        "use_fp16": True,
        "timestep_respacing": "200",
        "start_step": 60,
        "classifier_scales": (8.0, 10.0, 15.0),
        "use_logits": True,
        "l1_loss": 0.05,
        "l_perc": 30,
        "l_perc_layer": 18,
        "batch_size": 50,
    },
    # the networks that come with the project, for drawn faces of 64x64
    "demo": _SMALL
    | {
        "image_size": 64,
        "channel_mult": "2,2,3,4",
        "attention_resolutions": "16,8",
        "model_path": "models/demo/ddpm.safetensors",
        "classifier_path": "models/demo/classifier.safetensors",
        "oracle_path": "models/demo/oracle.safetensors",
        "perceptual_path": "models/demo/features.safetensors",
        "timestep_respacing": "100",
        "start_step": 30,
        "classifier_scales": (4.0, 8.0, 15.0),
        "l_perc": 300,
    },
    # likewise for MNIST's handwritten digits
    "digits": _SMALL
    | {
        "dataset": "mnist",
        "decision": "multiclass",
        "image_size": 32,
        "channel_mult": "2,2,3",
        "attention_resolutions": "8",
        "model_path": "models/digits/ddpm.safetensors",
        "classifier_path": "models/digits/classifier.safetensors",
        "oracle_path": "models/digits/oracle.safetensors",
        "perceptual_path": "models/digits/oracle.safetensors",
        "timestep_respacing": "50",
        "start_step": 25,
        "classifier_scales": (2.0, 4.0, 8.0, 15.0),
        "l_perc": 30,
    },
    # OpenAI's for ImageNet: 256x256_diffusion_uncond.pt, 256x256_diffusion.pt, 64x64_diffusion.pt
    "imagenet256": _256 | {"class_cond": False},
    "imagenet256-classes": _256 | {"class_cond": True},
    "imagenet64": _256
    | {"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "class_cond": True, "dropout": 0.1}
    | {"noise_schedule": "cosine", "use_new_attention_order": True},
    # ACE's for CelebA-HQ and BDD100k
    "celebahq256": _256 | {"num_channels": 128, "diffusion_steps": 500},
    "bdd256": _256 | {"num_channels": 128, "channel_mult": "1,2,3,4", "attention_resolutions": "16,8"},
    # P2-weighting's for FFHQ, CelebA-HQ, CUB, AFHQ, flowers and MetFaces
    "p2-256": _256 | {"num_channels": 128, "num_res_blocks": 1, "attention_resolutions": "16"},
}
"""Name -> flag -> value."""
