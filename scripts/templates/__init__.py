# SPDX-License-Identifier: Apache-2.0
"""What `kfloop new component` copies: a component that runs, to be changed."""
