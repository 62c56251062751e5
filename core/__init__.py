"""DiME: from an image, a classifier and a diffusion model to a counterfactual explanation."""
