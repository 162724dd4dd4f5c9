"""Many runs: each once, in processes or on Ray; searches over settings."""
