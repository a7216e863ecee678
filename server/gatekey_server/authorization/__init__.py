"""Authorization: the caller by its token, and the actor on whose behalf it calls."""
