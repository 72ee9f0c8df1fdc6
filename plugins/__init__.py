"""Custom ops, one folder each. Importing this package imports nothing heavy."""
