"""All private names of other libraries, in one file for each library."""
