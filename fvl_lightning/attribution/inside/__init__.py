"""Numbers from inside of a trained model: the weights that a fusion gives its sources, and gradients."""
