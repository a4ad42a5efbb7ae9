# SPDX-License-Identifier: Apache-2.0
"""What runs next to live traffic: the model server and the local inference service."""
