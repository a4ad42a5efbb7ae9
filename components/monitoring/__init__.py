# SPDX-License-Identifier: Apache-2.0
"""Drift (alibi-detect), live performance, retraining decision."""
