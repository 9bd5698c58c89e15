"""What an update costs: measured side by side, and counted at true size without a GPU (`ipro bench`)."""
