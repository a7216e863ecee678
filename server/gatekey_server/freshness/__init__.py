"""Where the snapshots that decisions are made from come from, and how fresh they are."""
