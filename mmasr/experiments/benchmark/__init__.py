"""What attention costs, in every form, side by side."""
