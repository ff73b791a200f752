"""What the specifications share: servers to start, disks that forget, histories to judge."""
