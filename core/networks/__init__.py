"""Networks from files: classifiers, diffusion models, feature networks."""
