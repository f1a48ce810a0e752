# Waits until there is a script, and then leaves nothing of itself but the outermost frame, which no traceback shows.
def wait():
    import os, sys
    from _frozen_importlib_external import SourceFileLoader
    descriptor = int(os.environ.pop("PADDOCK_WAITS_AT"))
    if sys.version_info < (3, 11):
        os.write(2, b"Python 3.11 or later can wait for its script")
        os._exit(1)
    os.write(1, b"\0")
    told = b""
    while piece := os.read(descriptor, 65536):
        told += piece
    os.close(descriptor)
    # Whoever was to tell it may have ended in the middle.
    size, _, told = told.partition(b"\0")
    if size != b"%d" % len(told):
        os._exit(1)
    script, run, given, *arguments = os.fsdecode(told).split("\0")
    os.environ["PADDOCK_RUN"] = run
    os.environ["PADDOCK_INPUT"] = given
    if not given:
        del os.environ["PADDOCK_INPUT"]
    else:
        opened = os.open(given, os.O_RDONLY)
        os.dup2(opened, 0)
        os.close(opened)
    sys.argv[:] = [script, *arguments]
    sys.orig_argv[-2:] = sys.argv
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(script)
    # It was asked for whether it is an archive.
    sys.path_importer_cache[script] = None
    main = globals()
    del main["wait"]
    main.update(__file__=script, __cached__=None, __loader__=SourceFileLoader("__main__", script))
    with open(script, "rb") as file:
        return file.read(), script, "exec", 0, True
try:
    exec(compile(*wait()))
except:
    (lambda raised: raised.with_traceback(raised.__traceback__.tb_next))(__import__("sys").exception())
    raise
