"""Families of architectures, a module each, which registers its networks.

The registry imports every module that lies here: a new family is a new file, and nothing else
names it. The functions in the modules make further members, of another depth for instance.
"""
