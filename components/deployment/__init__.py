# SPDX-License-Identifier: Apache-2.0
"""Publish, deploy, canary, promote, roll back (KServe), register."""
