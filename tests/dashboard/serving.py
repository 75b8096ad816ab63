"""A server in this process that really ends, as that of a user does when its process ends."""

import threading
from pathlib import Path

import waitress
from loopscope.dashboard.app import create_app
from loopscope.dashboard.index import CONFIG_KEY
from waitress.server import BaseWSGIServer


class Served:
    """The dashboard over some paths, answering in a thread on a port of 127.0.0.1; port 0 is a free one."""

    def __init__(self, *paths: Path, port: int = 0) -> None:
        app = create_app(paths)
        self.index = app.server.config[CONFIG_KEY]
        self.server = waitress.create_server(app.server, host="127.0.0.1", port=port, threads=4)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.port = self.server.effective_port
        self.base = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the server and close the runs it has open."""
        stop(self.server, self.thread)
        self.index.close()


def stop(server: BaseWSGIServer, thread: threading.Thread) -> None:
    """End a server that runs in a thread, and the connections to it.

    ``server.close()`` alone does less: a browser that keeps its connection is answered for ever, and each answer writes
    a byte into the pipe that was closed, or into the file that has its number now.
    """
    pipe = server.trigger

    def end() -> None:
        for connection in list(server.active_channels.values()):
            connection.handle_close()
        pipe.del_channel()  # out of the loop, but open until no worker is left to write into it
        server.del_channel()

    pipe.pull_trigger(end)  # in the thread of the loop, which ends when it has nothing to wait for
    thread.join(timeout=10)
    assert not thread.is_alive()
    server.task_dispatcher.shutdown()
    server.close()
