"""Find wrong training rows, edit them out of a trained model, and verify the edit against retraining."""
