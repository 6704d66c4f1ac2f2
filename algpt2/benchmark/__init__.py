"""What each runtime and precision gives for a checkpoint on the machine at hand."""
