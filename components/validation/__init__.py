# SPDX-License-Identifier: Apache-2.0
"""Statistics, schemas and validation of datasets, on TensorFlow Data Validation (TFDV)."""
