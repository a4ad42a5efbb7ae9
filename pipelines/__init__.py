# SPDX-License-Identifier: Apache-2.0
"""Compositions of components, their compiled YAML, and the local runner."""
