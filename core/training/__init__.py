"""Training the networks, and drawing from the diffusion model."""
