"""Result files and the arithmetic on them. No torch: a report builds anywhere."""
