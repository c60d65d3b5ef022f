"""What lies on disk: bases (whole models), weights (adapters), RRDBNet (a base to borrow)."""
