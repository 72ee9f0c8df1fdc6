"""Still pictures, directories of them, and animated WebP (see the map in `mtu.runtime.video`)."""
