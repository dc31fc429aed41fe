"""The embedded model "sticker": the world it is trained on, its training, and its evaluation."""
