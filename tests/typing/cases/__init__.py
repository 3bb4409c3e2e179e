"""What an application writes: one module for what is right, one for each kind of mistake."""
