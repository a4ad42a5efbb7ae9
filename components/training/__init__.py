"""Model training (TensorFlow/Keras)."""
