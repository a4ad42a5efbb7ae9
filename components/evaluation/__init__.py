"""Model evaluation, gate and batch scoring."""
