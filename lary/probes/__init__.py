"""Probes: what is trained on latents, and how it is scored."""
