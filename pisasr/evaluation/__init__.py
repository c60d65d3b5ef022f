"""Score: folders of restored pictures in, a number per picture and a table out.

    a metric         metrics (METRICS: a row each), niqe, features, perceptual, fid, deep (pyiqa's)
    a set            testsets and pairs (which pictures), then evaluate: scoring (the loop) -> report (the rest)
    what is shown    report writes it: statistics, tables, plots, figure (sheets); published (what others have printed)
    the model        surface (a grid of strengths), rules (which is best); realesrgan, a peer

Importing this package loads neither torch nor any scorer: PSNR, SSIM and NIQE need numpy alone.
"""
