"""`haversack serve`: an HTTP server that speaks the protocols of OpenAI and Anthropic."""
