"""Disks as others make them: a boot loader of their own, cloud-init, no guest agent."""
