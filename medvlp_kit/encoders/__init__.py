"""Image and text encoders. Every family returns the same two feature types."""
