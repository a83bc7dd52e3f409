"""Evaluation: how well a trained model predicts each token of held-out data."""
