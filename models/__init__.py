"""The networks around the diffusion model: classifier, oracle, face features, perceptual features.

This folder is also where users put their weights (README.md here says which, and under which names).
"""
