"""Clusters: is this one, or this machine, ready?"""
