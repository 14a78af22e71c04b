"""Pictures of stages and of their training, and a callback that records it."""
