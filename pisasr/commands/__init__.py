"""argv in, exit code out: infer, app, train, evaluate, convert, compare, and what they share:
options, batches.
"""
