"""The paper-doll world: a small, complete, real latent-diffusion world that ships with the package."""
