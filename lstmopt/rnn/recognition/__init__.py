"""Finds recurrent layers that an exporter wrote out in other operators, and gives them their node back."""
