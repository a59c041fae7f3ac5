"""Golden outputs of the commands: what a version of the package computed is what later versions compute."""
