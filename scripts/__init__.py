"""What people and CI run by make."""
