"""Networks that no library has: layers, quantizers, latent action models and the Open-MAGVIT2 encoder."""
