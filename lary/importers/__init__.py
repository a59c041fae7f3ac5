"""Importers of recordings into the tables and media of the benchmark."""
