"""What a recurrent layer is: its weights, what is tied to its units, readers and writers."""
