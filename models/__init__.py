"""The networks, a family each, and the checkpoints they are read from. Importing this package imports nothing heavy."""
