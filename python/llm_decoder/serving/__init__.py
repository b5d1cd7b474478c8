"""What the servers share: requests as data, the model behind them, answers as their clients expect them. It knows
neither FastAPI nor Flask; `api/` and `web/` each give it a transport."""
