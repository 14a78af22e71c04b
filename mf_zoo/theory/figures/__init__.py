"""Pictures of the theory: `python -m mf_zoo.theory.figures --output figures/`."""
