"""Images: recipes, the builder, and the library of what a host has."""
