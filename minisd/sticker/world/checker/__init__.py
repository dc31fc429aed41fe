"""An exact checker: detects the objects in an image of Sticker World and compares them with a scene or a caption."""
