"""The methods that advkit ships, one module a method, registered like any third party's."""
