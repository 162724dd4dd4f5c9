"""What the scripts of `experiments` share, one purpose a module."""
