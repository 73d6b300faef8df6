"""Disks that others made: read with suspicion, rewritten in a jail, never run as they are."""
