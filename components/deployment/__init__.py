"""Publish, deploy, canary, promote, roll back (KServe), register."""
