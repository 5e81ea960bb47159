"""What maintainers run: checks of the tests themselves, long runs, generated files, locks."""
