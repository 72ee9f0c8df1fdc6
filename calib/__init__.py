"""Pictures with a known truth, and measures against it. Importing this package imports nothing heavy."""
