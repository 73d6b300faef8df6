"""The keeper of one network: a small process that holds its namespaces and outlives the daemon.

It imports neither the models nor the API: it must be light, and it runs as a user that may not
even read Hanok's files once it has started.
"""
