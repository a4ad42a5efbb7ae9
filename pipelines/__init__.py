"""Compositions of components, their compiled YAML, and the local runner."""
