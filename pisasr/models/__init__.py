"""What lies on disk: bases (whole models), weights (adapters), autoencoder (the small model's
VAE).
"""
