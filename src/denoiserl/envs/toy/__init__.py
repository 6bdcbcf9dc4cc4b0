"""Small environments in which a method can be understood and measured within seconds."""
