"""What a training run is, whichever framework trains."""
