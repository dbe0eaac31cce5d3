"""What each owner may use, and what each uses."""
