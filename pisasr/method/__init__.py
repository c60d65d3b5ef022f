"""The method, tensors in and out: residual, model, adapters, text, tiling, vae_tiling, color."""
