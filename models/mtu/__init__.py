"""The multi-task-unit network. Importing this package imports nothing heavy."""
