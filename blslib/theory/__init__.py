"""What bounded lag can and cannot do, on paper: the max-plus recurrence and the laws of delay."""
