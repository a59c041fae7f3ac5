"""Latents: extraction of tokens and the store that holds them."""
