"""What to time: a module's `cases()` gives the rows of the table on the current GPU. Times nothing itself."""
