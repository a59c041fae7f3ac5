"""Results: the record of a run, its statistics, figures and report."""
