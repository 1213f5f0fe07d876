"""What bounded lag can and cannot do, on paper: max-plus recurrence, simulator, laws of delay, four-way split."""
