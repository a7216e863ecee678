"""What a server does beside serving: it writes uses and waits, and removes what has expired."""
