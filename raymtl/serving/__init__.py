"""Predictions and few-shot adaptation over HTTP: requests, the model behind them, Ray Serve."""
