"""The command line and its client."""
