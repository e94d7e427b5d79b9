"""What commands do beside running experiments: doctor, check, probe, launch, regress, the codec's bench."""
