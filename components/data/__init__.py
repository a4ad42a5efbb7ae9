# SPDX-License-Identifier: Apache-2.0
"""Ingest, transform (SQL), split, join labels, export."""
