"""A trained model as programs that torch alone can run."""
