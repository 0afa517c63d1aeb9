"""The viewer's server: the page itself, and pictures for it of scenes too large for a browser."""
