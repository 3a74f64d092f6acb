// Assembly where it may not be.
