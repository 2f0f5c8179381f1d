"""Sources of a trained model knocked out: replaced at inference, without training again."""
