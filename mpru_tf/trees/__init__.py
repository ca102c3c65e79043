"""Tree models: read as a neutral forest, which the backends then lower to TensorFlow. Imports no TensorFlow."""
