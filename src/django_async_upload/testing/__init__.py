"""Tools for the tests of projects that use this one."""
