"""Where weights are, and how much memory is free."""
