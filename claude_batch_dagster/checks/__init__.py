"""Limits on what was published, as asset checks."""
