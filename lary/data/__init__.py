"""Data: records of datasets, their tables, frames and action chunks."""
