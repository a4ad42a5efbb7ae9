"""Puts this folder on the path, so that `doubles` can be imported in every environment."""
