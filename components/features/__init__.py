# SPDX-License-Identifier: Apache-2.0
"""Feature definitions, training sets and the online store (Feast)."""
