"""What a trained network says of images that have no labels."""
