"""Many cubes, one table: gathering by a recipe, publishing, opening, the data card."""
