"""The main job, the benchmark and one file for each table or figure; they compose `permenv` and `agents`."""
