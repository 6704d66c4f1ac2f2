"""Packages that import their modules when these are needed.

transformers and KerasHub know a class only once its module was imported, and that starts a framework. So a package
that is imported registers its classes as soon as the library is imported too, not before.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys


def lazy_names(package, places):
    """What makes a package import its public names when they are first used (PEP 562).

    Args:
        package: str. The name of the package.
        places: dict of str to tuple of str. The names by the module that defines them.

    Returns:
        tuple of the functions `__getattr__` and `__dir__` of the package.

    Example:
        >>> get, names = lazy_names("algpt2", {"algpt2.errors": ("InputError",)})
        >>> get("InputError").__module__
        'algpt2.errors'
    """
    modules = {name: module for module, names in places.items() for name in names}

    def get(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names():
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names


def register_with(libraries, package, module, awaited=()):
    """Import a module of a package, which registers classes, once the libraries that they are for are imported.

    A library may be imported in the middle of another import, of the package itself or of what it needs. Then the
    module waits until that is complete.

    Args:
        libraries: tuple of str. The modules that must be there, that with the register among them.
        package: str.
        module: str. The module of the package.
        awaited: tuple of str. Other modules that import the libraries and that the package needs.
    """

    def are_there():
        return all(library in sys.modules for library in libraries)

    imports = 0

    @contextlib.contextmanager
    def counted(name):
        nonlocal imports
        imports += 1
        try:
            yield
        finally:
            imports -= 1
        if imports == 0 and are_there() and hook in sys.meta_path:
            sys.meta_path.remove(hook)
            importlib.import_module(module)

    hook = _ImportHook(lambda name: name in (*libraries, *awaited) or name.startswith(f"{package}."), counted)
    if are_there():
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, hook)


def around_imports(names, context):
    """Have modules imported within a context.

    Args:
        names: tuple of str. Modules that are not imported yet.
        context: function of the name of a module, to a context manager.
    """
    sys.meta_path.insert(0, _ImportHook(names.__contains__, context))


class _ImportHook(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and has some of them executed within a context."""

    def __init__(self, applies, context):
        self.applies, self.context, self.is_searching = applies, context, False

    def find_spec(self, name, path=None, target=None):
        if self.is_searching or not self.applies(name):
            return None
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.is_searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                with self.context(name):
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec
