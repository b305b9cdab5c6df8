"""genrec: a generative recommender that forgets users and concepts on schedule, and shows that it did."""

__version__ = "0.1.0"
