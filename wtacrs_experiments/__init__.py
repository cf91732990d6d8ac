"""The framework around the library: one module per step of a run."""
