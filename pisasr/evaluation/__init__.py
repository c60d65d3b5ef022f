"""Score folders of restored pictures: a number per picture and metric, a table, a plot, a sheet.

metrics (PSNR, SSIM, the table METRICS)  niqe  networks (LPIPS, DISTS, pyiqa, FID)
pairs (which files belong together) -> scoring (the loop, the means) -> report (the files)
How each number is computed, and what was proven about it: README.md.
"""
