"""The peak of memory of a training step, known before anything is trained."""
