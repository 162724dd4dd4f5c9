"""A training run of any algorithm: its options, its folder, what is recorded and logged, its evaluation."""
