"""Other libraries' own ways to call the kernels, one package each; none is imported before use."""
