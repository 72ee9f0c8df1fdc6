"""What `mtu-farm` alone takes and shows; what all commands share is in `mtu.runtime.console`."""
