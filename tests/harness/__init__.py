"""What the tests against a real server share: starting servers, speaking to them, looking at what they leave."""
