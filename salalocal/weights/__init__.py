"""Weight files: checked by their headers first, then read tensor by tensor. No pickle is ever opened."""
