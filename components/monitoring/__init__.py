"""Drift (alibi-detect), live performance, retraining decision."""
