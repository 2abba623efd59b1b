"""The figures of speed that anyone can rerun: what is timed, how, and how it is shown."""
