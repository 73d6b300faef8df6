"""Tests of images: recipes, the library, and builds that boot."""
