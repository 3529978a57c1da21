"""Other libraries' own ways to call the kernels, one package each; nothing here is imported before it is asked for."""
