"""The synthetic test world: drawings of paper dolls, and a small latent diffusion model and CLIP trained on them."""
