"""Coverage-guided fuzzing of everything that reads bytes of strangers: ``python -m tests.security.fuzz READER``."""
