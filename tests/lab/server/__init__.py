"""A plain Debian server with a boot loader of its own, for tests that change how it boots."""
