"""The CUDA kernels of fusedrnn, which finds them here; there is nothing to import."""
