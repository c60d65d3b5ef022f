"""Make training pairs: photos x_H, and x_L by degrading them."""
