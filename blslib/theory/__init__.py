"""What bounded lag can and cannot do, on paper: max-plus recurrence, laws of delay, four-way split, queues."""
