"""Models: records of encoders, their preprocessing and the classes that run them."""
