"""Networks that only run: one step at a time, and with weights of fewer bits."""
