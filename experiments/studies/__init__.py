"""Measurements behind the defaults, and what explains the main results."""
