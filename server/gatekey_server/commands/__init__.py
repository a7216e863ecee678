"""The use cases, and the frame that they share.

A use case is a function: it authorizes, does its work in one transaction, and returns the result. The frame is
`mutations` (transaction, repetition, audit event), `lookup`, `limits`, `paging` and `events`. Maintenance, in
`background`, runs use cases of its own, the purges, in the same frame.
"""
