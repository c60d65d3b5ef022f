"""The paper, tensors in and out: what is wrong with a latent, how much of it to take away, what is
left.

model        encode (x -> z), predict (z -> eps), decode (z -> x) residual     z_H = z_L -
[lambda_pix * eps_pix + lambda_sem * (eps_pisa - eps_pix)] adapters     two LoRAs on one UNet
text     words -> embeddings tiling       big latents in pieces       vae_tiling   big pictures
through the VAE, exactly       color   tones back
"""
