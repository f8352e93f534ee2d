"""`make demo`: the whole way from photos to a trained model, killed in the middle, on any two CPU cores."""
