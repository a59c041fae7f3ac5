"""Training of latent action models: networks, rules of the codebook, loop and monitor."""
