"""Analyses over finished runs: figures as PNG and SVG, their data as CSV and JSON."""
