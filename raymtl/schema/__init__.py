"""What a configuration can hold, without the methods: a mistake in it is found before torch is
imported.
"""
