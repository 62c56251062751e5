"""The diffusion library: U-Net, Gaussian diffusion, respacing, training, sampling.

Scripts written for openai/guided-diffusion import it by the names of that package.
"""
