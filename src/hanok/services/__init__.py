"""Use cases: what a user can ask of Hanok, with its locks, undo stacks and operations."""
