"""Components read from their source files, without the libraries that they import."""
