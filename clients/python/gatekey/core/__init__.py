"""What is true about keys, whoever asks and wherever it is stored. Pure: no I/O, no framework."""
