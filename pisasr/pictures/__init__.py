"""Files <-> pictures <-> tensors: images (one picture), folders (many, paired by name), sheets (for
the eye).
"""
