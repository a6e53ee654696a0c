"""For tests of Mapper and of plugins: the leak oracle and the guard for unit tests."""
