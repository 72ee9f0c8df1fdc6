"""The version of this project, in one place: pyproject.toml takes it from here, so that a checkout knows it as well."""

VERSION = "0.1.0"
