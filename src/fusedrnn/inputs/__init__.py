"""What layers take besides plain arrays: looked-up rows, masks, sequences of different lengths."""
