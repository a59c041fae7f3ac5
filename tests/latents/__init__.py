"""Tests of lary.latents."""
