"""The processes of ranks: how they are started, what each is to run, how they join a group, and how all of them end."""
