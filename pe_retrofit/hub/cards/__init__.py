"""What a model card is made of: the saved folder, the results of an evaluation, the recipe, and safe Markdown."""
