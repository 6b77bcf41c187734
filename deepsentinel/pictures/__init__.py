"""Arrays and scores as images, charts, and one page that holds them."""
