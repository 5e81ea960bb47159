"""The one internal request and the one stream of events that every dialect shares."""
