"""argv in, exit code out: infer, app, train, evaluate, convert, and what they share:
options, batches.
"""
