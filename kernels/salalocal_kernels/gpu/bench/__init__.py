"""What to time: a module's `cases()` gives (name, callable, bytes, flops) on the current GPU. Times nothing itself."""
