"""What the commands measure: the main job across folds, operators, models, the speed targets."""
