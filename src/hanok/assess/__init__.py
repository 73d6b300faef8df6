"""The measured use of servers: collected here, or read from what others have measured."""
