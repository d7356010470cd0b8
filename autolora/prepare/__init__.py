"""What prepares a dataset with the help of models: taggers and the trigger audit."""
