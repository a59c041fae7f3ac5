"""Everything that starts work: extraction, probes, controls, sweeps and the demo."""
