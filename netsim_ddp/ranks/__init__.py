"""Processes: who starts ranks, what they are told, how they meet, and how all of them end."""
