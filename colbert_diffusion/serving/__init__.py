"""Serving: `service` answers, `app` speaks HTTP, `server` runs it, `page` shows it. Importing it loads none of them."""
