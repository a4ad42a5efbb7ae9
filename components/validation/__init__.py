"""Statistics, schemas and validation of datasets, on TensorFlow Data Validation (TFDV)."""
