"""The documentation: it says what is there, and leads where it says."""
