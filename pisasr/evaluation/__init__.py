"""Scoring: folders of restored pictures in, a number per picture and a table out.

    which pictures   testsets -> folders (pairs by name)
    one number       scorers -> metrics, niqe, features (ours), deep, fid (pyiqa's networks)
    the loop         scoring, shared by processes; evaluate walks one set from its folders to its report
    what is shown    report (the summary), statistics, tables, plots, figure, published
    the model        surface: a grid of strengths; realesrgan: a peer

Importing this package loads neither torch nor any scorer: PSNR, SSIM and NIQE need numpy alone.
"""
