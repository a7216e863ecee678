"""The Gatekey server: decides what the holders of API keys may do."""
