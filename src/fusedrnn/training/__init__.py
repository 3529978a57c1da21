"""Losses and the clipping of gradients."""
