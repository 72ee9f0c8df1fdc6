"""Training: `mtu-train` and what it is made of. Importing the package imports nothing."""
