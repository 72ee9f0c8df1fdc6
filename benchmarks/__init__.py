"""Timings. Importing this package imports nothing heavy."""
