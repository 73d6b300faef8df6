"""What of the documentation is made from the program itself: ``make docs``.

Pages that are made here are committed, so that they can be read without running anything;
tests/docs says when one is stale.
"""
