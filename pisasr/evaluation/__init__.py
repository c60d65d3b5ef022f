"""Scoring: folders of restored pictures in, a number per picture and a table out.

    read (folders) -> pair by name (folders) -> score (metrics, niqe, features, deep) -> rows, summary, table (folders)

Importing this package loads neither torch nor any scorer: PSNR, SSIM and NIQE need numpy alone.
"""
