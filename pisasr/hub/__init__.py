"""Models as others take them: folders for the hub, what diffusers finds in them, one UNet for two
strengths.
"""
