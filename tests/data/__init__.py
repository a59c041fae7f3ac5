"""Tests of lary.data."""
