"""Tables of any library, read column by column."""
