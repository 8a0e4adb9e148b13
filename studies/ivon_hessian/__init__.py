"""The Hessian of IVON with and without flatness."""
