"""Named settings of main.py: --preset NAMES gives several flags other defaults; flags that are given win.

A preset is an entry here. bench/quality.py measures what they are worth; docs/methods.md
says what came out.
"""

from __future__ import annotations

from typing import Any

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
        "image_size": 128,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "attention_resolutions": "32,16,8",
        "learn_sigma": True,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
        "diffusion_steps": 500,
        "noise_schedule": "linear",
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
    "demo": {
        "image_size": 64,
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "2,2,3,4",
        "num_heads": 2,
        "attention_resolutions": "16,8",
        "learn_sigma": True,
        "diffusion_steps": 500,
        "model_path": "models/demo/ddpm.safetensors",
        "classifier_path": "models/demo/classifier.safetensors",
        "oracle_path": "models/demo/oracle.safetensors",
        "perceptual_path": "models/demo/features.safetensors",
        "timestep_respacing": "100",
        "start_step": 30,
        "classifier_scales": (4.0, 8.0, 15.0),
        "use_logits": True,
        "l1_loss": 0.05,
        "l_perc": 300,
        "l_perc_layer": 2,
    },
}
"""Name -> flag -> value."""
