"""Ingest, transform (SQL), split, join labels, export."""
