"""Modules: the tree of parameters, and the layers."""
