"""What Hanok asks of systemd, where that runs: scopes with limits, and why the daemon ends."""
