"""Pre-trained encoders of texts, whose vectors are the inputs of a model."""
