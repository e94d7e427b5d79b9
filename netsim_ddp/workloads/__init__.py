"""What the ranks train: models, data, and the emulated accelerator. The package itself imports no torch."""
