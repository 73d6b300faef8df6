"""The HTTP API: routes and wire formats, on the services alone."""
