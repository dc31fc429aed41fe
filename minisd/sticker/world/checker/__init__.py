"""Check an image of Sticker World exactly: find the objects in its pixels, and compare them with a scene."""
