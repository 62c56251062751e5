"""The diffusion library: U-Net, Gaussian diffusion, respacing, training. Scripts for guided-diffusion import it by these names."""
