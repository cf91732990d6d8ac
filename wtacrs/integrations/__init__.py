"""Where other libraries' own switches are used."""
