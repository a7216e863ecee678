"""What can be done: one use case a function, which authorises, does its work in one transaction, and answers."""
