"""Statistics, schema and data validation (TFDV)."""
