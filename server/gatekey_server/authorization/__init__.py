"""Who may do what: the caller by its token, and the actor on whose behalf it calls."""
