"""argv in, exit code out: infer, train, evaluate, convert, and the options they share."""
