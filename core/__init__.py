"""What every other floor stands on: errors, files, caches, the description of a model. Imports nothing heavy."""
