"""What makes a retrofit survive: start near the original, move there slowly, learn from it."""
