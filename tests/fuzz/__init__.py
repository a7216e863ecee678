"""What is sent at random must never be answered with a fault: messages, bytes on the socket, specs in YAML."""
