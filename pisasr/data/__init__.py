"""Where training pairs come from: photos x_H, and what makes x_L of them."""
