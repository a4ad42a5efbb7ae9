"""What runs next to live traffic: the model server and the local inference service."""
