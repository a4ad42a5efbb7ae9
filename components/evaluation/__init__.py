# SPDX-License-Identifier: Apache-2.0
"""Model evaluation, gate and batch scoring."""
