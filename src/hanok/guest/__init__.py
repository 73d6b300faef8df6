"""Everything that happens inside a guest: its agent, its seed, its console, when it is ready."""
