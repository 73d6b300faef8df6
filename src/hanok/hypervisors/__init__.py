"""The hypervisors: one contract (base), what only some can do (optional), one package each."""
