"""Mount by the kernel's ublk driver: attaching, and serving without a socket."""
