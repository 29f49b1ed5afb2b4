"""What a pretrained model is for: one task a file, each result with its rule, interval, seed and controls."""
