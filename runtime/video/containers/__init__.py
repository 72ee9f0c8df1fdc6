"""What differs from container to container (see the map in `mtu.runtime.video`)."""
