"""Feature definitions, training sets and the online store (Feast)."""
